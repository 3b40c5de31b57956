package freeswitch

import (
	"encoding/xml"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

// operatorsFiles are a switch's own, as they are shipped and as people write them.
var operatorsFiles = map[string]string{
	BindingsFile: `<configuration name="xml_curl.conf" description="cURL XML Gateway">
  <bindings>
    <binding name="example">
      <!-- <param name="gateway-url" value="http://www.example.com/gateway.xml" bindings="dialplan"/> -->
    </binding>
  </bindings>
</configuration>
`,
	ModulesFile: `<configuration name="modules.conf" description="Modules">
  <modules>
    <!-- XML Interfaces -->
    <!-- <load module="mod_xml_curl"/> -->
    <load module="mod_sofia"/>
  </modules>
</configuration>
`,
	"sip_profiles/external.xml": `<profile name="external">
  <gateways>
  </gateways>
  <domains>
    <domain name="all" alias="false" parse="true"/>
  </domains>
  <settings/>
</profile>
`,
	"sip_profiles/carriers.xml": "<include><profile name=\"carriers\">\n  <settings/>\n</profile></include>", // no end of line
}

func writeFiles(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		out[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var asking = Params{Node: "fs1", Token: "t0ken", URLs: []string{"http://127.0.0.1:8080/freeswitch/xml"}}

// TestAttachAndDetach: what is added is found where the switch looks for it,
// may be added again, and goes without a trace.
func TestAttachAndDetach(t *testing.T) {
	without := maps.Clone(operatorsFiles)
	delete(without, BindingsFile)
	loaded := maps.Clone(operatorsFiles)
	loaded[ModulesFile] = strings.Replace(loaded[ModulesFile], `<load module="mod_sofia"/>`, `<load module="mod_xml_curl"/><load module="mod_sofia"/>`, 1)
	for name, files := range map[string]map[string]string{"files as shipped": operatorsFiles, "no bindings before": without, "loaded already": loaded} {
		t.Run(name, func(t *testing.T) {
			dir := writeFiles(t, files)
			for range 2 {
				if _, err := Attach(dir, asking, []string{"external", "carriers"}); err != nil {
					t.Fatal(err)
				}
			}
			got := readFiles(t, dir)
			for file, want := range map[string]string{
				BindingsFile: `value="http://127.0.0.1:8080/freeswitch/xml" bindings="dialplan|directory"/>`, ModulesFile: `<load module="mod_xml_curl"/>`,
				"sip_profiles/external.xml": GatewayDomain, "sip_profiles/carriers.xml": GatewayDomain,
			} {
				// The module was there before as a comment, or loaded.
				if n := strings.Count(got[file], want) - strings.Count(files[file], want); n != 1 && !(name == "loaded already" && file == ModulesFile && n == 0) {
					t.Errorf("%s has %d of %s:\n%s", file, n, want, got[file])
				}
				if err := xml.Unmarshal([]byte(got[file]), new(struct{})); err != nil {
					t.Errorf("%s is no XML: %v\n%s", file, err, got[file])
				}
			}
			if i, j := strings.Index(got[ModulesFile], "mod_xml_curl"), strings.Index(got[ModulesFile], "mod_sofia"); i > j {
				t.Errorf("the module is not the first:\n%s", got[ModulesFile])
			}
			info, err := os.Stat(filepath.Join(dir, ModulesFile))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the rights are %v now, %v", info.Mode(), err)
			}
			would, err := Detach(dir, true)
			if err != nil || !maps.Equal(readFiles(t, dir), got) {
				t.Fatalf("a dry detach changed something: %v", err)
			}
			did, err := Detach(dir, false)
			if err != nil || !slices.Equal(would, did) || len(did) < 3 {
				t.Errorf("detached %v, told %v: %v", did, would, err)
			}
			if after := readFiles(t, dir); !maps.Equal(after, files) {
				t.Errorf("the files are %q now", after)
			}
			if did, err := Detach(dir, false); err != nil || len(did) > 0 {
				t.Errorf("detached twice: %v %v", did, err)
			}
		})
	}
}

func TestAttachRefused(t *testing.T) {
	change := func(file, text string) map[string]string {
		files := maps.Clone(operatorsFiles)
		files[file] = text
		return files
	}
	empty := maps.Clone(operatorsFiles)
	delete(empty, ModulesFile)
	for name, c := range map[string]struct {
		files   map[string]string
		profile string
		want    error
	}{
		"no configuration":   {empty, "external", bulkhead.NotFound},
		"no such profile":    {operatorsFiles, "elsewhere", bulkhead.NotFound},
		"a path for profile": {operatorsFiles, "../x", bulkhead.Invalid},
		"no bindings":        {change(BindingsFile, "<configuration/>"), "external", bulkhead.Invalid},
		"no modules":         {change(ModulesFile, "<configuration/>"), "external", bulkhead.Invalid},
		"no profile in it":   {change("sip_profiles/external.xml", "<include/>"), "external", bulkhead.Invalid},
		"cut by hand":        {change(ModulesFile, "<modules>\n"+addedBegin+"</modules>"), "external", bulkhead.Conflict},
	} {
		dir := writeFiles(t, c.files)
		if _, err := Attach(dir, asking, []string{c.profile}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if got := readFiles(t, dir); !maps.Equal(got, c.files) {
			t.Errorf("%s: the files were changed", name)
		}
	}
	if _, err := Detach(writeFiles(t, change(ModulesFile, addedBegin)), false); !errors.Is(err, bulkhead.Conflict) {
		t.Errorf("detach of what was cut by hand: %v", err)
	}
	if _, err := Additions(t.TempDir(), Params{Node: "a b"}, nil); !errors.Is(err, bulkhead.Invalid) {
		t.Errorf("a node without a name: %v", err)
	}
	// What to add can be seen on a host that has no switch.
	if list, err := Additions(t.TempDir(), asking, []string{"external"}); err != nil || len(list) != 3 {
		t.Errorf("%d additions: %v", len(list), err)
	}
}
