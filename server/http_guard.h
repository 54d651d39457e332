// Checks of a request's header block, before its body is read.
#pragma once

#include "http.h"

// Bytes of a request line and its headers. Well below the memory libmicrohttpd has for a connection, so that this
// refusal is ours: the library's own is a page of HTML, sent only to who goes beyond that memory.
enum { SRV_MAX_HEADER_BLOCK = 64 << 10 };

// A header block over that limit, or length headers that two parsers could read differently (request smuggling): true
// and x->error filled when the connection must be closed. Also sets x->has_body and *ret_length (UINT64_MAX for
// chunked).
bool srv_http_guard(struct srv_exchange *x, uint64_t *ret_length);
// Is this Content-Type (may be NULL) one that carries JSON?
bool srv_http_is_json(const char *content_type);
// The client's id if it is printable and at most 128 bytes, otherwise a new one.
void srv_http_request_id(const char *given, char *out, size_t size);
