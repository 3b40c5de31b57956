package kamailio

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/bulkhead-voip/bulkhead"
)

// Detach takes out of the kamailio.cfg at conf what Lines told its operator to
// add for the files in dir, and returns the lines that go. With dry it only
// returns them. Lines that load modules stay: the host may use them by now.
//
// What was not added word for word cannot be told from the host's own: lines
// that would still speak of Bulkhead are an error of kind bulkhead.Conflict
// that names them, and nothing is written.
func Detach(conf, dir string, dry bool) ([]string, error) {
	fail := func(err error) ([]string, error) {
		return nil, fmt.Errorf("take Bulkhead out of %s: %w", conf, err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fail(err)
	}
	text, err := os.ReadFile(conf)
	if err != nil {
		return fail(err)
	}
	kept, gone, err := withoutLines(strings.SplitAfter(string(text), "\n"), Params{}.Lines(dir))
	if err != nil {
		return fail(err)
	}
	var left []string
	for i, l := range kept {
		if code, _, _ := strings.Cut(l, "#"); strings.Contains(code, "BULKHEAD_") || strings.Contains(code, dir+"/") {
			left = append(left, fmt.Sprintf("%d: %s", i+1, strings.TrimSpace(l)))
		}
	}
	if len(left) > 0 {
		return fail(fmt.Errorf("these lines are not as they were printed, take them out by hand first:\n%s: %w", strings.Join(left, "\n"), bulkhead.Conflict))
	}
	if dry || len(gone) == 0 {
		return gone, nil
	}
	if err := renameio.WriteFile(conf, []byte(strings.Join(kept, "")), 0o600, renameio.WithExistingPermissions()); err != nil {
		return fail(err)
	}
	return gone, nil
}

// withoutLines parts the lines of a configuration into those that stay and
// those that were added.
func withoutLines(conf []string, lines string) (kept, gone []string, err error) {
	const blockBegins, blockEnds = "if (is_method(\"INVITE\") && !has_totag()) {", "#    2 is a call"
	before, rest, ok1 := strings.Cut(lines, blockBegins)
	block, after, ok2 := strings.Cut(rest, blockEnds)
	if !ok1 || !ok2 {
		return nil, nil, fmt.Errorf("the lines to add are not in their form: %w", bulkhead.Invalid)
	}
	single := map[string]bool{"reply_route { route(BULKHEAD_STRIP); }": true}
	for l := range strings.Lines(before + blockEnds + after) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "loadmodule") {
			single[l] = true
		}
	}
	var want []string
	for l := range strings.Lines(blockBegins + block) {
		if l = strings.TrimSpace(l); l != "" {
			want = append(want, l)
		}
	}
	trimmed := make([]string, len(conf))
	for i, l := range conf {
		trimmed[i] = strings.TrimSpace(l)
	}
	for i := 0; i < len(conf); i++ {
		switch {
		case slices.Equal(trimmed[i:min(i+len(want), len(conf))], want):
			gone = append(gone, trimmed[i:i+len(want)]...)
			i += len(want) - 1
		case single[trimmed[i]]:
			gone = append(gone, trimmed[i])
		default:
			kept = append(kept, conf[i])
		}
	}
	return kept, gone, nil
}
