package configsvc

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/route"
)

// Dialect is how one PBX asks and is answered.
type Dialect struct {
	Name        string   // for metrics: freeswitch, mod_curl, asterisk, kamailio
	Pattern     string   // where it is asked, as chi has it: /freeswitch/xml, /asterisk/realtime/*
	Methods     []string // GET, POST
	ContentType string   // of an answer whose Result names none
	BySBC       bool     // it is SBCs that ask, not nodes

	// Answer appends the answer to dst. It must answer whatever the question
	// holds, out of the snapshot alone and at once, and must keep neither the
	// question nor dst. Questions come from many goroutines.
	Answer func(x *route.Snapshot, q Question, dst []byte) ([]byte, Result)

	// Shadow is called instead where Config.Shadow is set. It appends the
	// dialect's "not mine", whatever the question and also without a snapshot,
	// and returns what Answer would have done with the call; nil if the
	// question begins no call, or nobody proved to ask.
	Shadow func(x *route.Snapshot, q Question, dst []byte) ([]byte, Result, *Decision)
}

// Question is what a PBX asked. Nothing in it is to be believed but Node and SBC.
type Question struct {
	// Node is who proved to ask. Empty: nobody did, and the answer is the
	// dialect's own denial.
	Node   bulkhead.NodeID
	SBC    bulkhead.SBCID // the same, of a dialect that SBCs ask in
	Method string         // GET or POST
	Path   string         // of the URL, decoded
	Query  string         // of the URL, as it came
	Body   []byte
}

// Result says what an answer was.
type Result struct {
	Outcome     string            // in a word, one of a few: for the metric
	Tenant      bulkhead.TenantID // whose question it was; empty: nobody's
	Status      int               // 0: 200
	ContentType string            // empty: the dialect's
	// Urgent: the PBX asks one such question at a time, so it may not wait for
	// its tenant's turn: every other tenant's would wait with it.
	Urgent bool
}

func (d *Dialect) validate() error {
	ok := d.Name != "" && strings.HasPrefix(d.Pattern, "/") && d.Answer != nil && len(d.Methods) > 0
	for _, m := range d.Methods {
		ok = ok && slices.Contains([]string{http.MethodGet, http.MethodPost}, m)
	}
	if !ok {
		return fmt.Errorf("configsvc: dialect %q needs a name, a pattern, GET or POST, and an answer: %w", d.Name, bulkhead.Invalid)
	}
	return nil
}

// router finds a dialect by the path of a question, which costs a PBX's call
// less than a chi.Router, and asks one for whatever is no question.
type router struct {
	direct []directRoute
	rest   chi.Router
}

type directRoute struct {
	path    string
	below   bool // all that begins with path
	methods []string
	answer  http.HandlerFunc
}

func (m *router) add(d *Dialect, answer http.HandlerFunc) {
	for _, method := range d.Methods {
		m.rest.Method(method, d.Pattern, answer)
	}
	path, below := strings.CutSuffix(d.Pattern, "*")
	if !strings.ContainsAny(path, "*{") {
		m.direct = append(m.direct, directRoute{path, below, d.Methods, answer})
	}
}

func (m *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	for i := range m.direct {
		d := &m.direct[i]
		if (path == d.path || d.below && strings.HasPrefix(path, d.path)) && r.URL.RawPath == "" && slices.Contains(d.methods, r.Method) {
			d.answer(w, r)
			return
		}
	}
	m.rest.ServeHTTP(w, r)
}
