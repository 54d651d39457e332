// Handlers of the endpoints. Each is called once, with the whole body in x->body, and answers or submits.
#pragma once

#include "http.h"

enum MHD_Result srv_api_chat(struct srv_exchange *x);
enum MHD_Result srv_api_completions(struct srv_exchange *x);

enum MHD_Result srv_api_models(struct srv_exchange *x);
enum MHD_Result srv_api_model(struct srv_exchange *x);
enum MHD_Result srv_api_tokenize(struct srv_exchange *x);
enum MHD_Result srv_api_detokenize(struct srv_exchange *x);
enum MHD_Result srv_api_health(struct srv_exchange *x);
enum MHD_Result srv_api_ready(struct srv_exchange *x);
enum MHD_Result srv_api_version(struct srv_exchange *x);
enum MHD_Result srv_api_status(struct srv_exchange *x);
enum MHD_Result srv_api_metrics(struct srv_exchange *x);
