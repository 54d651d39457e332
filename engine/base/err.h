// Error codes of the engine layer: 0 is success, failures are negative, one table.
#pragma once

#define ENG_ERRORS(X)                              \
    X(ENG_ENOMEM, -101, "out of memory")           \
    X(ENG_EINVAL, -102, "invalid argument")        \
    X(ENG_EIO, -103, "cannot read the file")       \
    X(ENG_EFORMAT, -104, "the file is malformed")  \
    X(ENG_ENOTSUP, -105, "not supported")          \
    X(ENG_ELIMIT, -106, "a limit was exceeded")    \
    X(ENG_EBUSY, -107, "the queue is full")        \
    X(ENG_ECLOSED, -108, "the engine is stopping") \
    X(ENG_EDEVICE, -109, "the backend failed")

enum eng_error {
#define X(name, code, text) name = code,
    ENG_ERRORS(X)
#undef X
};

// One lower-case phrase for an engine or kernel code; never NULL.
const char *eng_strerror(int code);
