// Package bulkhead holds the domain of Bulkhead, a sidecar control plane for
// multi-tenant FreeSWITCH, Asterisk and Kamailio: tenants, the pools of media
// nodes that serve them, the cells they live in, and the numbered revisions
// of all of it.
//
// The package does no I/O, reads no clock and imports the standard library
// only. Everything else in the module is built on it.
package bulkhead
