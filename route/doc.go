// Package route answers what to do with a call. A Snapshot is the index of
// one revision; Decide looks a call up in it; Tables lays the same decisions
// out for an SBC, which must give the same tenant and the same dispatcher set
// for every call.
//
// The package is pure: no I/O, no clock. The cost of Decide does not grow
// with the number of tenants, nor does that of Snapshot.Apply, which makes the
// next snapshot out of the last one and a change.
package route
