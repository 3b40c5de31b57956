package kamailio

import (
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// keptOutput is how much of the end of Kamailio's output is kept, and
	// keptLines how much of it an error tells.
	keptOutput = 8 << 10
	keptLines  = 6
	keptLine   = 300
)

// output passes on what Kamailio prints and keeps the end of it.
type output struct {
	to io.Writer // nil: nowhere

	mu  sync.Mutex
	end []byte
}

// Write never fails: a full disk must not keep Kamailio from running.
func (o *output) Write(p []byte) (int, error) {
	if o.to != nil {
		_, _ = o.to.Write(p)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end = append(o.end, p...)
	if extra := len(o.end) - keptOutput; extra > 0 {
		o.end = append(o.end[:0], o.end[extra:]...)
	}
	return len(p), nil
}

// credentials are those within a URL.
var credentials = regexp.MustCompile(`//[^/@\s]*@`)

// why returns the last lines that tell of an error, or else the last lines, in
// one line and bounded.
func (o *output) why() string {
	o.mu.Lock()
	all := strings.Split(strings.TrimSpace(string(o.end)), "\n")
	o.mu.Unlock()
	var errs []string
	for _, l := range all {
		if strings.Contains(l, "ERROR") || strings.Contains(l, "CRITICAL") {
			errs = append(errs, l)
		}
	}
	if len(errs) == 0 {
		errs = all
	}
	errs = errs[max(0, len(errs)-keptLines):]
	for i, l := range errs {
		l = credentials.ReplaceAllString(strings.TrimSpace(l), "//***@")
		errs[i] = l[:min(len(l), keptLine)]
	}
	if said := strings.Join(errs, " | "); said != "" {
		return said
	}
	return "nothing"
}

// waitOutput waits until everything that was printed has been passed on.
func (p *Process) waitOutput() {
	t := time.NewTimer(termTimeout)
	defer t.Stop()
	select {
	case <-p.copied:
	case <-t.C:
	}
}
