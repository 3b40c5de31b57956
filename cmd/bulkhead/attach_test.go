package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAttachFreeswitch: the commands of docs/attach-freeswitch.md, on a node
// of which the registry knows no more than the document says.
func TestAttachFreeswitch(t *testing.T) {
	data, dir := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "freeswitch")
	applyText(t, data, fmt.Sprintf(shadowRegistry, "192.0.2.10:5080", ""))
	modules := "<configuration name=\"modules.conf\">\n  <modules>\n    <load module=\"mod_sofia\"/>\n  </modules>\n</configuration>\n"
	if err := os.MkdirAll(filepath.Join(dir, "autoload_configs"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "autoload_configs", "modules.conf.xml"), []byte(modules), 0o600); err != nil {
		t.Fatal(err)
	}
	printed := bulkheadRun(t, "config", "freeswitch", "--node", "fs1", "--data", data, "--attach", "--dir", dir, "--profile", "external")
	for _, want := range []string{"before </bindings>", `<load module="mod_xml_curl"/>`, "gateways.bulkhead.invalid", `bindings="dialplan|directory"`} {
		if !strings.Contains(printed, want) {
			t.Errorf("%q is not printed:\n%s", want, printed)
		}
	}
	bulkheadRun(t, "config", "freeswitch", "--node", "fs1", "--data", data, "--attach", "--dir", dir, "--write")
	told := bulkheadRun(t, "detach", "--node", "fs1", "--data", data, "--dir", dir)
	if !strings.Contains(told, "modules.conf.xml") || !strings.Contains(told, "xml_curl.conf.xml") || !strings.Contains(told, "--write") {
		t.Errorf("detach would change %q", told)
	}
	bulkheadRun(t, "detach", "--node", "fs1", "--data", data, "--dir", dir, "--write")
	b, err := os.ReadFile(filepath.Join(dir, "autoload_configs", "modules.conf.xml"))
	if err != nil || string(b) != modules {
		t.Errorf("the modules are %q now, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "autoload_configs", "xml_curl.conf.xml")); err == nil {
		t.Error("the bindings are there still")
	}
	if out := bulkheadRun(t, "detach", "--node", "fs1", "--data", data, "--dir", dir); !strings.Contains(out, "nothing was added") {
		t.Errorf("%q", out)
	}
}
