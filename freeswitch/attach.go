package freeswitch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/internal/editfile"
)

// The lines between which everything stands that was added to a file.
const (
	addedBegin = "<!-- bulkhead: added by bulkhead config freeswitch -->\n"
	addedEnd   = "<!-- bulkhead: end -->\n"
	addedFile  = "<!-- bulkhead: this file was made by bulkhead config freeswitch -->\n"
)

// ModulesFile is the file that says which modules a switch loads.
const ModulesFile = "autoload_configs/modules.conf.xml"

// emptyBindings is the file of a switch that had none.
const emptyBindings = addedFile + `<configuration name="xml_curl.conf" description="asks Bulkhead">
  <bindings>
  </bindings>
</configuration>
`

// Addition is what is added to one of the operator's files.
type Addition struct {
	File string // below the switch's configuration folder
	Text string // what is added
	New  string // the whole file with it
}

// Additions returns what makes the switch whose configuration is in a folder
// ask Bulkhead: bindings for the dialplan and the directory, the module, and in
// each of the named profiles the domain by which it finds the gateways of
// trunks. Of the parameters Node, Token and URLs count. What is there already
// through an earlier attachment counts as not there; a file that is not there,
// as empty, so that what to add can be seen on any host.
func Additions(dir string, p Params, profiles []string) ([]Addition, error) {
	bindings, err := renderBindings(p)
	if err != nil {
		return nil, err
	}
	asks, err := without(dir, BindingsFile, emptyBindings)
	if err != nil {
		return nil, err
	}
	last := strings.LastIndex(asks, "</bindings>") // an example may stand in a comment before it
	if last < 0 {
		return nil, fmt.Errorf("attach %s: it has no </bindings>: %w", filepath.Join(dir, BindingsFile), bulkhead.Invalid)
	}
	out := []Addition{insert(BindingsFile, asks, lineStart(asks, last), bindings)}
	modules, err := without(dir, ModulesFile, "<modules>\n</modules>\n")
	if err != nil {
		return nil, err
	}
	if !loadsAsker.MatchString(comments.ReplaceAllString(modules, "")) {
		// First: only modules that are loaded later ask it.
		at := strings.Index(modules, "<modules>")
		if at < 0 {
			return nil, fmt.Errorf("attach %s: it has no <modules>: %w", filepath.Join(dir, ModulesFile), bulkhead.Invalid)
		}
		out = append(out, insert(ModulesFile, modules, nextLine(modules, at), "    <load module=\"mod_xml_curl\"/>\n"))
	}
	for _, name := range profiles {
		add, err := gatewayDomain(dir, name)
		if err != nil {
			return nil, err
		}
		out = append(out, add)
	}
	return out, nil
}

var loadsAsker = regexp.MustCompile(`<load\s+module="mod_xml_curl"\s*/>`)

var profileBegin = regexp.MustCompile(`<profile\s+name="[^"]*"[^>]*>`)

// gatewayDomain has a profile look for gateways in our directory.
func gatewayDomain(dir, name string) (Addition, error) {
	if !isToken(name) {
		return Addition{}, &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: "profile", Msg: fmt.Sprintf("%q is no profile's name", name)}
	}
	file := filepath.Join("sip_profiles", name+".xml")
	text, err := without(dir, file, "<profile name=\""+name+"\">\n</profile>\n")
	if err != nil {
		return Addition{}, err
	}
	line := "    <domain name=\"" + GatewayDomain + "\" alias=\"false\" parse=\"true\"/>\n"
	if at := strings.Index(text, "<domains>"); at >= 0 {
		return insert(file, text, nextLine(text, at), line), nil
	}
	at := profileBegin.FindStringIndex(text)
	if at == nil {
		return Addition{}, fmt.Errorf("attach %s: it has no <profile name=...>: %w", filepath.Join(dir, file), bulkhead.Invalid)
	}
	return insert(file, text, nextLine(text, at[0]), "    <domains>\n"+line+"    </domains>\n"), nil
}

func insert(file, text string, at int, what string) Addition {
	what = addedBegin + what + addedEnd
	return Addition{File: file, Text: what, New: text[:at] + what + text[at:]}
}

// lineStart is where the line begins that holds what is at i.
func lineStart(text string, i int) int { return strings.LastIndexByte(text[:i], '\n') + 1 }

// nextLine is where the line after that begins.
func nextLine(text string, i int) int {
	if n := strings.IndexByte(text[i:], '\n'); n >= 0 {
		return i + n + 1
	}
	return len(text)
}

// without returns a file's text without what was added, or what stands for
// one that is not there.
func without(dir, file, empty string) (string, error) {
	path := filepath.Join(dir, file)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return "", fmt.Errorf("attach: %w", err)
	}
	return cut(path, string(b))
}

// cut takes out what was added.
func cut(path, text string) (string, error) {
	for {
		before, rest, ok := strings.Cut(text, addedBegin)
		if !ok {
			return text, nil
		}
		_, after, ok := strings.Cut(rest, addedEnd)
		if !ok {
			return "", fmt.Errorf("%s: the lines that were added have no end %q: take them out by hand: %w", path, strings.TrimSpace(addedEnd), bulkhead.Conflict)
		}
		text = before + after
	}
}

// Attach adds what Additions tells. It may be repeated. Nothing takes effect
// before mod_xml_curl is loaded, or loaded again.
func Attach(dir string, p Params, profiles []string) ([]string, error) {
	list, err := Additions(dir, p, profiles)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		path := filepath.Join(dir, a.File)
		if _, err := os.Stat(path); a.File != BindingsFile && err != nil {
			return nil, fmt.Errorf("attach %s: is %s the configuration folder of a FreeSWITCH? %w", path, dir, bulkhead.NotFound)
		}
	}
	var changed []string
	for _, a := range list {
		if err := editfile.Replace(filepath.Join(dir, a.File), a.New); err != nil {
			return changed, fmt.Errorf("attach: %w", err)
		}
		changed = append(changed, a.File)
	}
	return changed, nil
}

// Detach takes out of the files of a folder what Attach added; they are then,
// byte for byte, as they were. It returns the files that it changed or removed;
// with dry it only tells which it would.
func Detach(dir string, dry bool) ([]string, error) {
	profiles, err := filepath.Glob(filepath.Join(dir, "sip_profiles", "*.xml"))
	if err != nil {
		return nil, fmt.Errorf("detach %s: %w", dir, err)
	}
	var changed []string
	for _, path := range append([]string{filepath.Join(dir, BindingsFile), filepath.Join(dir, ModulesFile)}, profiles...) {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("detach: %w", err)
		}
		text, err := cut(path, string(b))
		switch {
		case err != nil:
			return changed, fmt.Errorf("detach: %w", err)
		case text == string(b):
			continue
		case dry:
		case text == emptyBindings:
			err = os.Remove(path)
		default:
			err = editfile.Replace(path, text)
		}
		if err != nil {
			return changed, fmt.Errorf("detach: %w", err)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return changed, fmt.Errorf("detach: %w", err)
		}
		changed = append(changed, name)
	}
	return changed, nil
}
