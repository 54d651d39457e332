# shellcheck shell=bash
# Sourced by the scripts here: where things are, our libraries where the machine has none, and the build. GPU_ROOT is the repository.
export GPU_DIR=${GPU_DIR:-$GPU_ROOT/build-gpu}
export GPU_BIN=$GPU_DIR/bin
[ "$GPU_REHEARSE" = 0 ] || export GPU_BIN=$GPU_DIR/bin-rehearse
export GPU_OUT=$GPU_DIR/out
[ "$GPU_REHEARSE" = 0 ] || export GPU_OUT=$GPU_DIR/out-rehearse
export GPU_MODELS=$GPU_DIR/models
export GPU_BACKEND=cuda
[ "$GPU_REHEARSE" = 0 ] || export GPU_BACKEND=${GPU_REHEARSE_BACKEND:-cpu}
# The backend whose device the host plays: the rehearsal nearest to the truth, and by far the slowest.
[ "$GPU_REHEARSE" = 0 ] || [ "$GPU_BACKEND" = cpu ] || export TRIMODE_CUDA_MODULE=$GPU_BIN/trimode-cuda-host.so
# A toolkit is not always on the path.
command -v nvcc >/dev/null || export PATH=$PATH:/usr/local/cuda/bin
modules=(libuv libmicrohttpd libcjson yaml-0.1 libpcre2-8)

# What the binaries are made from: every source file of the build, so that stale ones are not used.
gpu_source_hash() {
    (
        cd "$GPU_ROOT" || exit 1
        find kernels engine server tests scripts/gpu meson.build meson_options.txt -type f |
            grep -E '\.(c|h|cu|cuh|cc|build|txt)$' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16
    )
}

gpu_arch() {
    local cap
    cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d ' .')
    echo "${GPU_ARCH:-${cap:-90}}"
}

# Finds our libraries with pkg-config, or in the packages that --prepare left in build-gpu/debs, unpacked beside them.
gpu_libraries() {
    local lib root=$GPU_DIR/root deb m missing=0
    export PKG_CONFIG=${PKG_CONFIG:-pkg-config}
    for m in "${modules[@]}"; do
        "$PKG_CONFIG" --exists "$m" 2>/dev/null || missing=1
    done
    [ -f /usr/include/uthash.h ] && [ -f /usr/include/xxhash.h ] || missing=1
    [ "$missing" = 1 ] || return 0
    if ! ls "$GPU_DIR"/debs/*.deb >/dev/null 2>&1; then
        echo "gpu: this machine lacks our libraries and build-gpu/debs is empty: run scripts/gpu.sh --prepare where there is a network" >&2
        return 1
    fi
    if [ ! -f "$root/.unpacked" ]; then
        rm -rf "$root"
        mkdir -p "$root"
        for deb in "$GPU_DIR"/debs/*.deb; do
            dpkg-deb -x "$deb" "$root" || return 1
        done
        touch "$root/.unpacked"
    fi
    lib=$root/usr/lib/$(uname -m)-linux-gnu
    command -v "$PKG_CONFIG" >/dev/null || export PKG_CONFIG="$root/usr/bin/pkgconf"
    export PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_LIBDIR=$lib/pkgconfig:$root/usr/share/pkgconfig
    # pkgconf's own library, where it came from the packages too; nothing else we run needs this variable.
    case $PKG_CONFIG in "$root"/*)
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/usr/bin/pkgconf "$@"\n' "$lib" "$root" >"$GPU_DIR/pkg-config"
        chmod +x "$GPU_DIR/pkg-config"
        export PKG_CONFIG=$GPU_DIR/pkg-config
        ;;
    esac
    export CPATH=$root/usr/include${CPATH:+:$CPATH} LIBRARY_PATH=$lib${LIBRARY_PATH:+:$LIBRARY_PATH}
}

gpu_cuda_home() {
    local nvcc
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    [ -x "$nvcc" ] && dirname "$(dirname "$(readlink -f "$nvcc")")"
}

# Old-style run paths: they also hold for the libraries of libraries and for what is opened at run time, and Python keeps its own.
gpu_ldflags() {
    local lib cuda
    lib=root/usr/lib/$(uname -m)-linux-gnu
    printf '%s' "-Wl,--disable-new-dtags -Wl,-rpath,\$ORIGIN/../$lib -Wl,-rpath-link,$GPU_DIR/$lib"
    cuda=$(gpu_cuda_home) && printf ' -Wl,-rpath,%s' "$cuda/lib64"
}

# Binaries that were packed elsewhere look for cuBLASLt beside our libraries too: a link to where this machine's toolkit or Python has it.
gpu_link_cublas() {
    local lib found
    lib=$GPU_DIR/root/usr/lib/$(uname -m)-linux-gnu
    found=$(find "$(gpu_cuda_home)/lib64/" -name 'libcublasLt.so.1?' 2>/dev/null | head -1)
    [ -n "$found" ] || found=$(find "$("${GPU_PYTHON:-python3}" -c 'import sys; print(sys.prefix)')" -name 'libcublasLt.so.1?' 2>/dev/null | head -1)
    [ -n "$found" ] || return 0
    mkdir -p "$lib" && ln -sfn "$found" "$lib/$(basename "$found")"
}

# What the parts run, as paths in a build directory; what a build does not have is left out.
programs=(trimode trimode-cuda.so kernels/trimode-cuda.so kernels/cuda/trimode-cuda.so tests/kernels/checkkern
    tests/kernels/cuda/checkkern_cuda tests/kernels/cuda/checkkern_cuda_gpu tests/bench/bench_products
    tests/engine/measure_formats tests/engine/test_engine_cuda)
[ "$GPU_REHEARSE" = 0 ] || programs+=(tests/kernels/cuda/trimode-cuda-host.so)

# Test programs know the repository by the path they were built at: a link stands there when they were built elsewhere.
gpu_at_home() {
    local root
    root=$(cat "$GPU_BIN/root" 2>/dev/null) && [ -n "$root" ] || return 1
    [ "$(readlink -f "$root")" = "$(readlink -f "$GPU_ROOT")" ] && return 0
    [ ! -e "$root" ] && mkdir -p "$(dirname "$root")" 2>/dev/null && ln -s "$GPU_ROOT" "$root" 2>/dev/null
}

# Builds into build-gpu, unless the binaries there were made from these very sources.
gpu_build() {
    local hash t targets archs dir=$GPU_DIR/build cuda=(-Dcuda=enabled) start=$SECONDS
    archs=$(sed -n "s/^option('\([a-z_]*arch[a-z]*\)'.*/\1/p" "$GPU_ROOT/meson_options.txt")
    [ -z "$archs" ] || cuda+=("-D$archs=$(gpu_arch)")
    if [ "$GPU_REHEARSE" = 1 ]; then
        dir=$GPU_DIR/build-rehearse cuda=(-Dcuda=disabled)
    fi
    gpu_libraries || return 1
    [ "$GPU_REHEARSE" = 1 ] || gpu_link_cublas
    hash="$(gpu_source_hash) ${cuda[*]}"
    if [ "$(cat "$GPU_BIN/sources" 2>/dev/null)" = "$hash" ] && "$GPU_BIN/trimode" --version >/dev/null 2>&1 && gpu_at_home; then
        echo "gpu: the binaries in ${GPU_BIN#"$GPU_ROOT"/} were made from these sources"
        return 0
    fi
    mkdir -p "$GPU_DIR"
    echo "gpu: building ${cuda[*]}"
    if [ ! -f "$dir/build.ninja" ]; then
        LDFLAGS=$(gpu_ldflags) meson setup "$dir" "$GPU_ROOT" --buildtype=release "${cuda[@]}" >"$GPU_DIR/setup.log" 2>&1 ||
            { tail -n 30 "$GPU_DIR/setup.log" >&2; return 1; }
    else
        meson configure "$dir" "${cuda[@]}" >"$GPU_DIR/setup.log" 2>&1
    fi
    ninja -C "$dir" build.ninja >"$GPU_DIR/build.log" 2>&1
    mapfile -t targets < <(ninja -C "$dir" -t targets all | sed 's/: .*//' | grep -xF "$(printf '%s\n' "${programs[@]}")")
    ninja -C "$dir" "${targets[@]}" >"$GPU_DIR/build.log" 2>&1 || { tail -n 40 "$GPU_DIR/build.log" >&2; return 1; }
    mkdir -p "$GPU_BIN"
    for t in "${targets[@]}"; do
        cp -f "$dir/$t" "$GPU_BIN/" || return 1
    done
    if [ "$GPU_REHEARSE" = 0 ] && command -v nvcc >/dev/null; then
        nvcc -O3 -arch="sm_$(gpu_arch)" -o "$GPU_BIN/read_limit" "$GPU_ROOT/scripts/gpu/read_limit.cu" >>"$GPU_DIR/build.log" 2>&1 ||
            { tail -n 20 "$GPU_DIR/build.log" >&2; return 1; }
    fi
    "$GPU_BIN/trimode" --version >/dev/null || return 1
    echo "$hash" >"$GPU_BIN/sources"
    echo "$GPU_ROOT" >"$GPU_BIN/root"
    echo "gpu: built in $((SECONDS - start)) s"
}

gpu_describe() {
    echo "machine: $(nproc) CPUs, $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo 'no GPU')"
    [ "$GPU_REHEARSE" = 0 ] || echo "REHEARSAL on a CPU (backend $GPU_BACKEND) with tiny models: these numbers say nothing about a GPU"
    echo "sources: $(git -C "$GPU_ROOT" rev-parse --short HEAD 2>/dev/null || echo '?') $(gpu_source_hash)," \
        "$(nvcc --version 2>/dev/null | grep -o 'release [0-9.]*' || echo 'no nvcc')"
}
