// Package hostload measures how busy a Linux host is, or the control group
// that one of its programs lives in, from what the kernel counts in /proc and
// /sys/fs/cgroup (versions 1 and 2).
//
//	Reader.Read ─> Reading (counters) ─┐
//	Reader.Read ─> Reading ────────────┴─ Between ─> Use (shares and rates)
//
// A Sampler reads every so often and keeps the newest Use.
//
// A program whose control group, or one above it, has a CPU quota is as busy
// as the quota is used: the host may be idle while it starves. Without a quota
// what counts is the host.
package hostload
