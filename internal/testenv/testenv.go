// Package testenv finds and starts the real programs that tests talk to, on
// free loopback ports and in temporary folders, and ends them by pid.
package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// RequireReal reports whether a missing program is a failure instead of a
// skipped test, as in continuous integration.
func RequireReal() bool { return os.Getenv("BULKHEAD_REQUIRE_REAL") == "1" }

// Need returns the path of a program. Where it is missing the test is skipped,
// or fails if the real programs are required; it names the Debian package.
func Need(t testing.TB, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	// Daemons are outside an ordinary user's PATH.
	for _, dir := range []string{"/usr/sbin/", "/usr/local/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + program); err == nil {
			return dir + program
		}
	}
	if RequireReal() {
		t.Fatalf("%s is not installed, and BULKHEAD_REQUIRE_REAL=1: scripts/test-deps installs %s", program, debianPackage)
	}
	t.Skipf("needs %s: scripts/test-deps installs %s", program, debianPackage)
	return ""
}
