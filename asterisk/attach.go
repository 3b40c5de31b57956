package asterisk

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
	addedBegin = "; bulkhead: added by bulkhead config asterisk --attach"
	addedEnd   = "; bulkhead: end"
	addedFile  = "; bulkhead: this file was made by bulkhead config asterisk --attach"
)

// Addition is what is added at the end of one of the operator's files.
type Addition struct {
	File     string   // below /etc/asterisk
	Sections []string // that must be there before; those that are not are added
	Lines    []string
}

// additions attach an Asterisk.
var additions = []Addition{
	{File: "res_curl.conf", Sections: []string{"globals"}, Lines: []string{"#include bulkhead/res_curl.conf"}},
	{File: "extconfig.conf", Sections: []string{"settings"}, Lines: []string{"#include bulkhead/extconfig.conf"}},
	{File: "sorcery.conf", Sections: []string{"res_pjsip", "res_pjsip_endpoint_identifier_ip"}, Lines: []string{"#include bulkhead/sorcery.conf"}},
	{File: "manager.conf", Sections: []string{"general"}, Lines: []string{"#include bulkhead/manager_cache.conf"}},
	{File: "extensions.conf", Lines: []string{"#include bulkhead/extensions.conf"}},
	{File: "pjsip.conf", Lines: []string{"#include bulkhead/pjsip_own.conf"}},
}

// attachModules are what the added lines need, beyond what makes calls by pjsip.
var attachModules = []string{
	"res_curl", "func_curl", "res_config_curl", "res_sorcery_memory_cache", "res_sorcery_realtime",
	"app_exec", "app_mixmonitor", "app_playback", "app_stack", "app_voicemail", "func_callerid", "func_cdr", "func_channel", "func_cut", "func_dialplan",
	"func_groupcount", "func_hangupcause", "func_logic", "func_pjsip_endpoint", "func_strings", "func_uri", "res_pjsip_header_funcs",
}

// Additions returns what has to be added to the files of a folder such as
// /etc/asterisk. What is there already through an earlier attachment counts as
// not there.
func Additions(dir string) ([]Addition, error) {
	var out []Addition
	for _, a := range additions {
		text, err := without(filepath.Join(dir, a.File))
		if err != nil {
			return nil, err
		}
		var missing []string
		for _, s := range a.Sections {
			if !regexp.MustCompile(`(?m)^\s*\[` + s + `\]`).MatchString(text) {
				missing = append(missing, s)
			}
		}
		out = append(out, Addition{File: a.File, Sections: missing, Lines: a.Lines})
	}
	modules, err := without(filepath.Join(dir, "modules.conf"))
	if err != nil {
		return nil, err
	}
	if regexp.MustCompile(`(?mi)^\s*autoload\s*=>?\s*yes`).MatchString(modules) {
		return out, nil // they are loaded as they are installed
	}
	load := Addition{File: "modules.conf"}
	for _, m := range attachModules {
		if !regexp.MustCompile(`(?m)^\s*(pre)?load\s*=>?\s*` + m + `\.so`).MatchString(modules) {
			load.Lines = append(load.Lines, "load = "+m+".so")
		}
	}
	if len(load.Lines) > 0 {
		if !strings.Contains(modules, "[modules]") {
			load.Sections = []string{"modules"}
		}
		out = append(out, load)
	}
	return out, nil
}

// Text is the addition as it stands in the file.
func (a Addition) Text() string {
	var b strings.Builder
	b.WriteString("\n" + addedBegin + "\n")
	for _, s := range a.Sections {
		b.WriteString("[" + s + "]\n")
	}
	for _, l := range a.Lines {
		b.WriteString(l + "\n")
	}
	b.WriteString(addedEnd + "\n")
	return b.String()
}

// without returns a file's text without what was added; of no file it is empty.
func without(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return cut(string(b)), nil
}

// cut takes out what was added.
func cut(text string) string {
	for {
		before, rest, ok := strings.Cut(text, "\n"+addedBegin+"\n")
		if !ok {
			return text
		}
		_, after, ok := strings.Cut(rest, "\n"+addedEnd+"\n")
		if !ok {
			return text // somebody has changed it: he must mend it
		}
		text = before + after
	}
}

// Attach adds to the files of a folder such as /etc/asterisk what makes that
// Asterisk ask Bulkhead, and writes the files of RenderNode beside them. It may
// be repeated. Nothing takes effect before Asterisk is restarted.
func Attach(dir string, p NodeParams) error {
	p.Attach = true
	files, err := RenderNode(p)
	if err != nil {
		return err
	}
	list, err := Additions(dir)
	if err != nil {
		return err
	}
	if err := editfile.MakeFolder(filepath.Join(dir, "bulkhead")); err != nil {
		return fmt.Errorf("attach %s: %w", dir, err)
	}
	for _, f := range files {
		if err := editfile.Replace(filepath.Join(dir, f.Path), string(f.Text)); err != nil {
			return fmt.Errorf("attach %s: %w", dir, err)
		}
	}
	for _, a := range list {
		file := filepath.Join(dir, a.File)
		text, err := without(file)
		if err != nil {
			return err
		}
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			text = addedFile
		}
		if err := editfile.Replace(file, text+a.Text()); err != nil {
			return err
		}
	}
	return nil
}

// Detach takes out of the files of a folder what Attach added, and the files
// that it wrote. The others are then, byte for byte, as they were. It returns
// the files that it changed or removed; with dry it only tells which it would.
// Nothing takes effect before Asterisk is restarted.
func Detach(dir string, dry bool) ([]string, error) {
	var changed []string
	for _, a := range append([]Addition{{File: "modules.conf"}}, additions...) {
		file := filepath.Join(dir, a.File)
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("detach %s: %w", dir, err)
		}
		text := cut(string(b))
		switch {
		case strings.Contains(text, addedBegin):
			return changed, fmt.Errorf("detach %s: the lines that were added have no end %q: take them out by hand: %w", file, addedEnd, bulkhead.Conflict)
		case text == string(b):
			continue
		case dry:
		case text == addedFile:
			err = os.Remove(file)
		default:
			err = editfile.Replace(file, text)
		}
		if err != nil {
			return changed, fmt.Errorf("detach %s: %w", dir, err)
		}
		changed = append(changed, a.File)
	}
	files, err := fs.Glob(confFiles, "conf/node/bulkhead/*")
	if err != nil {
		return changed, err
	}
	for _, f := range files {
		name := filepath.Join("bulkhead", filepath.Base(f))
		if dry {
			_, err = os.Stat(filepath.Join(dir, name))
		} else {
			err = os.Remove(filepath.Join(dir, name))
		}
		if err == nil {
			changed = append(changed, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return changed, fmt.Errorf("detach %s: %w", dir, err)
		}
	}
	if !dry {
		_ = os.Remove(filepath.Join(dir, "bulkhead")) // files of the event bridge may be there too
	}
	return changed, nil
}
