package bulkhead

// MaxAnswer is how long the answer about one call may be in any dialect, in
// bytes. mod_curl takes 64,000 and cuts the rest off without a word, so a
// tenant whose answers could be longer is not let in.
const MaxAnswer = 32 << 10

// What parts of an answer take at most, in the wordiest dialect, beside the
// names in them. They are upper bounds: the adapters' tests hold their answers
// against them.
const (
	answerBase   = 3500 // what holds for the whole call
	answerDial   = 110
	answerUser   = 254
	answerTrunk  = 400
	answerAction = 200
	answerTrunks = 8 // that one call may try, at most
)

// sizes reckons how long answers may become.
type sizes struct {
	t       *Tenant
	headers int // in each leg to a trunk
	trunk   int // the longest leg to a trunk
}

func sizesOf(t *Tenant) sizes {
	s := sizes{t: t}
	for i := range t.Headers {
		if t.Headers[i].Action != RemoveHeader {
			s.headers += len("sip_h_=,") + len(t.Headers[i].Name) + len(t.Headers[i].Value)
		}
	}
	for i := range t.Trunks {
		k := &t.Trunks[i]
		s.trunk = max(s.trunk, answerTrunk+3*len(k.Name)+2*len(t.ID)+2*len(k.Host)+4*len(t.Causes())+s.headers)
	}
	return s
}

// base is what every answer has.
func (s *sizes) base() int {
	n := answerBase
	for i := range s.t.Headers {
		n += 50 + len(s.t.Headers[i].Name) + len(s.t.Headers[i].Value)
	}
	for _, c := range s.t.Codecs {
		n += len(c) + 3
	}
	return n
}

// user is what ringing a user takes, with his voicemail.
func (s *sizes) user(extension string) int {
	names := len(extension) + len(s.t.Realm())
	return answerDial + answerUser + answerAction + 3*names
}

// member is what one of a group takes.
func (s *sizes) member(m Target) int {
	if kind, extension := m.Parse(); kind == ToUser {
		return answerUser + 2*(len(extension)+len(s.t.Realm()))
	}
	return s.trunk
}

// outside is what a call to a number outside takes.
func (s *sizes) outside() int { return answerDial + min(len(s.t.Trunks), answerTrunks)*s.trunk }

// fits reports whether a call that only goes out has an answer that does.
func (s *sizes) fits() bool { return s.base()+s.outside() <= MaxAnswer }

// validAnswer checks calls that only go out. Those that a target leads to are
// checked with it.
func (t *Tenant) validAnswer() error {
	s := sizesOf(t)
	if !s.fits() {
		return invalid("headers", "may make the answer about a call to one of %d trunks %d bytes long: up to %d are taken; use fewer or shorter rules", len(t.Trunks), s.base()+s.outside(), MaxAnswer)
	}
	return nil
}
