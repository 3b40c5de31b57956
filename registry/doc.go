// Package registry keeps the numbered revisions of all configuration and
// hands them on:
//
//	FILE.yaml ── ParseFile ── File.Plan ── Store.Commit ──> revision 8
//	                                                          │
//	              Follower <── Store.Head, Store.Watch <──────┤  in the processes that hold the store
//	                                                          │
//	apply(State) <── Follower <── Remote <══ HTTP ══ Feed <───┘  everywhere else
//	                    │
//	                 LastGood: files of the newest state, for a start with all of this dead
//
// A Store knows the current state and every revision that led to it. SQLite
// is the embedded one: a file that several processes of one host may open.
// Redis is for several hosts. Both also keep Tokens and an Audit log, and
// pass one conformance suite. A Feed serves followers over HTTP, each with a
// token and cut down to its cell; a Remote is the other end. With the state
// goes a Keyring, by which an agent knows its cell's tokens with nobody to ask. WriteBackup and
// ReadBackup carry everything from one store to another while it is in use.
// The package knows no routing: whoever follows a store indexes the state.
package registry
