package main

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/registry"
)

const repository = "../.."

// composeFile is what the test looks at; the rest is for the specification.
type composeFile struct {
	Services map[string]struct {
		Image       string
		Build       struct{ Context, Dockerfile string }
		Command     any
		Entrypoint  any
		Healthcheck struct{ Test []string }
		Ports       []string
		Volumes     []string
		Networks    map[string]struct {
			Address string `yaml:"ipv4_address"`
		}
		MemLimit string `yaml:"mem_limit"`
	}
	Volumes map[string]any
	Secrets map[string]struct{ File string }
}

func readCompose(t *testing.T) (text string, c composeFile) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(repository, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return string(b), c
}

// TestComposeSpecification loads the file as the specification's own code does.
func TestComposeSpecification(t *testing.T) {
	cmd := exec.Command("go", "run", "./composecheck", "../docker-compose.yml", "../deploy/compose/example.env")
	cmd.Dir = filepath.Join(repository, "tools")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestComposeAgreesWithTheCode: every file, flag, address, volume and variable
// that the file names exists.
func TestComposeAgreesWithTheCode(t *testing.T) {
	text, c := readCompose(t)
	example, err := os.ReadFile(filepath.Join(repository, "deploy/compose/example.env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\$\{([A-Z_]+)[:?}-]`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(example), "\n"+m[1]+"=") {
			t.Errorf("variable %s is not in example.env", m[1])
		}
	}
	var addresses []string
	for name, s := range c.Services {
		for _, n := range s.Networks {
			addresses = append(addresses, n.Address)
		}
		if s.Build.Dockerfile != "" {
			exists(t, name, s.Build.Dockerfile)
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if _, named := c.Volumes[from]; strings.HasPrefix(from, ".") {
				exists(t, name, from)
			} else if !named {
				t.Errorf("service %s: there is no volume %q", name, from)
			}
		}
		if name != "init" && (len(s.Healthcheck.Test) == 0 || s.MemLimit == "") {
			t.Errorf("service %s has no health check or no memory limit", name)
		}
		if s.Image == "bulkhead:local" {
			checkCommand(t, name, s.Command)
		}
	}
	for name, s := range c.Services {
		if words, ok := s.Command.([]any); ok {
			for _, w := range words {
				for _, a := range regexp.MustCompile(`172\.30\.0\.\d+`).FindAllString(w.(string), -1) {
					if !slices.Contains(addresses, a) {
						t.Errorf("service %s speaks of %s, which no service has", name, a)
					}
				}
			}
		}
	}
	// Whoever is no centre follows it, and has neither registry nor store.
	for name, s := range c.Services {
		words := fmt.Sprint(s.Command)
		for _, follower := range []string{"agent", "dispatcher", "eventbridge"} {
			if name == follower && (!strings.Contains(words, "--central") || strings.Contains(words, "/data ") || slices.Contains(s.Volumes, "data:/data")) {
				t.Errorf("service %s does not follow the feed: %s %v", name, words, s.Volumes)
			}
		}
	}
	checkCell(t, addresses)
}

func exists(t *testing.T, service, path string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(repository, path)); err != nil {
		t.Errorf("service %s: %v", service, err)
	}
}

// checkCommand parses a service's command, or each line of its script, with
// the real flags.
func checkCommand(t *testing.T, service string, command any) {
	t.Helper()
	var lines [][]string
	for _, w := range command.([]any) {
		if script := w.(string); strings.Contains(script, "\n") {
			for _, line := range strings.Split(strings.TrimSpace(script), "\n") {
				// What a line runs, without what the shell does before and after.
				if _, args, runs := strings.Cut(line, "/bulkhead "); runs {
					args, _, _ = strings.Cut(args, " > ")
					lines = append(lines, strings.Fields(args))
				}
			}
		}
	}
	if lines == nil {
		var words []string
		for _, w := range command.([]any) {
			words = append(words, w.(string))
		}
		lines = [][]string{words}
	}
	for _, args := range lines {
		parser, err := kong.New(&cli{}, kong.Exit(func(int) {}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse(args); err != nil {
			t.Errorf("service %s: bulkhead %s: %v", service, strings.Join(args, " "), err)
		}
	}
}

// checkCell holds the registry of the compose file against its addresses.
func checkCell(t *testing.T, addresses []string) {
	t.Helper()
	f, err := registry.ReadFile(filepath.Join(repository, "deploy/compose/cell.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	change, err := f.Plan(bulkhead.State{}, false)
	if err != nil {
		t.Fatal(err)
	}
	named := []string{change.SBCs[0].SIP}
	for _, n := range change.Nodes {
		named = append(named, n.SIP, n.ESL)
	}
	for _, a := range named {
		if ap, err := netip.ParseAddrPort(a); err != nil || !slices.Contains(addresses, ap.Addr().String()) {
			t.Errorf("the registry names %s, which no service has (%v)", a, err)
		}
	}
}
