// Package registry keeps the numbered revisions of all configuration and
// hands them on:
//
//	FILE.yaml ── ParseFile ── File.Plan ── Store.Commit ──> revision 8
//	                                                          │
//	apply(State) <── Follower ── Store.Head, Store.Watch <────┘
//
// A Store knows the current state and every revision that led to it. SQLite
// is the embedded one: a file that several processes of one host may open.
// The package knows no routing: whoever follows a store indexes the state.
package registry
