//! The columns of `show stat` that bindonce uses, and their names in haproxy's exporter.

/// How the values of several generations are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    /// A counter: the sum over all generations, including those that are gone.
    Counter,
    /// The sum over living generations.
    Live,
    /// The value of the serving generation.
    Serving,
}

/// A column of `show stat`.
#[derive(Debug)]
pub(super) struct Column {
    /// Its name in `show stat`.
    pub(super) name: &'static str,
    /// Its name in haproxy's exporter, after `haproxy_frontend_`. The samples of a counter end in
    /// `_total` as well.
    pub(super) metric: &'static str,
    /// The value of the label `code`, where one metric has several columns. Those columns are
    /// adjacent.
    pub(super) code: Option<&'static str>,
    pub(super) sum: Sum,
    pub(super) help: &'static str,
}

const fn column(name: &'static str, metric: &'static str, sum: Sum, help: &'static str) -> Column {
    Column { name, metric, code: None, sum, help }
}

const fn counter(name: &'static str, metric: &'static str, help: &'static str) -> Column {
    column(name, metric, Sum::Counter, help)
}

const fn responses(name: &'static str, code: &'static str) -> Column {
    let help = "HTTP responses, by class of status.";
    Column { code: Some(code), ..counter(name, "http_responses", help) }
}

/// Number of columns.
pub(super) const COUNT: usize = COLUMNS.len();

/// Index of `stot`, which every row has.
pub(super) const SESSIONS: usize = 4;

pub(super) const COLUMNS: &[Column] = &[
    column("scur", "current_sessions", Sum::Live, "Sessions now, of generations that drain too."),
    column(
        "qcur",
        "current_queue",
        Sum::Live,
        "Requests that wait, of generations that drain too.",
    ),
    column(
        "slim",
        "limit_sessions",
        Sum::Serving,
        "The most sessions of the generation that serves.",
    ),
    column("weight", "weight", Sum::Serving, "The weight in the generation that serves."),
    counter("stot", "sessions", "Sessions."),
    counter("bin", "bytes_in", "Bytes of requests."),
    counter("bout", "bytes_out", "Bytes of responses."),
    counter("dreq", "requests_denied", "Requests that were denied."),
    counter("dresp", "responses_denied", "Responses that were denied."),
    counter("ereq", "request_errors", "Requests that were invalid."),
    counter("econ", "connection_errors", "Connections to servers that failed."),
    counter("eresp", "response_errors", "Responses that were invalid."),
    counter("wretr", "retry_warnings", "Connections to servers that were tried again."),
    counter(
        "wredis",
        "redispatch_warnings",
        "Requests that went to another server after a failure.",
    ),
    counter("chkfail", "check_failures", "Health checks that failed, added over generations."),
    counter("chkdown", "check_up_down", "Times it went from UP to DOWN, added over generations."),
    counter("downtime", "downtime_seconds", "Time in state DOWN, added over generations."),
    counter("lbtot", "loadbalanced", "Requests that load balancing has sent there."),
    responses("hrsp_1xx", "1xx"),
    responses("hrsp_2xx", "2xx"),
    responses("hrsp_3xx", "3xx"),
    responses("hrsp_4xx", "4xx"),
    responses("hrsp_5xx", "5xx"),
    responses("hrsp_other", "other"),
    counter("req_tot", "http_requests", "HTTP requests."),
    counter("cli_abrt", "client_aborts", "Transfers that the client has ended."),
    counter("srv_abrt", "server_aborts", "Transfers that the server has ended."),
    counter("comp_in", "http_comp_bytes_in", "Bytes that went into compression."),
    counter("comp_out", "http_comp_bytes_out", "Bytes that came out of compression."),
    counter(
        "comp_byp",
        "http_comp_bytes_bypassed",
        "Bytes that were not compressed for want of CPU, memory or bandwidth.",
    ),
    counter("comp_rsp", "http_comp_responses", "Responses that were compressed."),
    counter("conn_tot", "connections", "Connections."),
    counter("intercepted", "intercepted_requests", "Requests that haproxy has answered itself."),
    counter("dcon", "denied_connections", "Connections that tcp-request connection has denied."),
    counter("dses", "denied_sessions", "Sessions that tcp-request session has denied."),
    counter("wrew", "failed_header_rewriting", "Headers that could not be rewritten."),
    counter("connect", "connection_attempts", "Connections to servers that were begun."),
    counter("reuse", "connection_reuses", "Requests that took a connection that was there."),
    counter("cache_lookups", "http_cache_lookups", "Requests that were looked up in the cache."),
    counter("cache_hits", "http_cache_hits", "Responses from the cache."),
    counter("eint", "internal_errors", "Internal errors of haproxy."),
    counter("reqbin", "req_bytes_in", "Bytes of requests that came in."),
    counter("reqbout", "req_bytes_out", "Bytes of requests that went out."),
    counter("resbin", "res_bytes_in", "Bytes of responses that came in."),
    counter("resbout", "res_bytes_out", "Bytes of responses that went out."),
];
