// Package asterisktest starts the real Asterisk for tests, and is, where that
// is too slow or not at hand, a server that speaks ARI and AMI as recorded
// traffic of Asterisk 22.10.1 shows them.
//
// Start runs an Asterisk out of a folder that scripts/test-deps makes, with
// exactly the configuration that package asterisk ships for attaching to one.
//
// NewServer is a fake: it generates calls, keeps a ledger of them, serves their
// events over ARI and AMI, and forgets them where nobody listens, as a real one
// does. It carries no SIP and no media. A comment that says "capture" names the
// recorded file that shows the behaviour.
package asterisktest
