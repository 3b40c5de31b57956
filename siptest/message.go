package siptest

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/emiago/sipgo/sip"

	"github.com/bulkhead-voip/bulkhead"
)

// maxHeaders bounds the headers of a message that is looked at at all.
const maxHeaders = 128

// smuggles reports whether the header section has an LF without CR, or a NUL.
// The parser takes them as part of a value; a next hop that takes them as the
// end of a line would read a header there that nobody has stripped.
func smuggles(b []byte) bool {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		b = b[:i]
	}
	for i, c := range b {
		if c == 0 || (c == '\n' && (i == 0 || b[i-1] != '\r')) {
			return true
		}
	}
	return false
}

// wellFormed reports whether msg has what transactions and dialogs rest on
// (RFC 3261 section 8.1.1).
func wellFormed(msg sip.Message) bool {
	via, cseq := msg.Via(), msg.CSeq()
	if via == nil || cseq == nil || msg.CallID() == nil || msg.From() == nil || msg.To() == nil {
		return false
	}
	if b, _ := via.Params.Get("branch"); !strings.HasPrefix(b, sip.RFC3261BranchMagicCookie) || len(b) > 256 {
		return false
	}
	switch m := msg.(type) {
	case *sip.Request:
		return cseq.MethodName == m.Method && len(m.Headers()) <= maxHeaders && m.Recipient.Host != ""
	case *sip.Response:
		return m.StatusCode >= 100 && m.StatusCode < 700 && len(m.Headers()) <= maxHeaders
	}
	return false
}

// stampVia writes where the request really came from into its topmost Via
// (RFC 3261 section 18.2.1, RFC 3581 section 4).
func stampVia(via *sip.ViaHeader, src netip.AddrPort) {
	ip := src.Addr().String()
	_, rport := via.Params.Get("rport")
	if rport {
		via.Params.Add("rport", strconv.Itoa(int(src.Port())))
	}
	if rport || strings.Trim(via.Host, "[]") != ip {
		via.Params.Add("received", ip)
	} else {
		via.Params.Remove("received")
	}
}

// replyTo returns where a response goes (RFC 3261 section 18.2.2): the source
// address, and the source port if the sender asked for it by rport.
func replyTo(via *sip.ViaHeader, src netip.AddrPort) netip.AddrPort {
	if _, ok := via.Params.Get("rport"); ok {
		return src
	}
	port := via.Port
	if port <= 0 || port > 65535 {
		port = 5060
	}
	return netip.AddrPortFrom(src.Addr(), uint16(port))
}

func serverKey(req *sip.Request, method sip.RequestMethod) string {
	via := req.Via()
	branch, _ := via.Params.Get("branch")
	return branch + "|" + strings.ToLower(via.Host) + ":" + strconv.Itoa(via.Port) + "|" + string(method)
}

func clientKey(branch string, method sip.RequestMethod) string {
	return branch + "|" + string(method)
}

func newBranch() string { return sip.GenerateBranchN(20) }
func newTag() string    { return sip.GenerateTagN(12) }

// newVia makes the Via of a request that leaves from addr.
func newVia(addr netip.AddrPort) *sip.ViaHeader {
	return &sip.ViaHeader{
		ProtocolName: "SIP", ProtocolVersion: "2.0", Transport: "UDP",
		Host: hostOf(addr.Addr()), Port: int(addr.Port()),
		Params: sip.HeaderParams{{K: "branch", V: newBranch()}, {K: "rport"}},
	}
}

// hostOf prints an address as a URI's host.
func hostOf(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// addrURI is sip:user@addr.
func addrURI(user string, addr netip.AddrPort) sip.Uri {
	return sip.Uri{Scheme: "sip", User: user, Host: hostOf(addr.Addr()), Port: int(addr.Port())}
}

// URIAddr returns the numeric address that uri names; port 5060 if it names
// none. A host name is an error of kind bulkhead.Invalid: this package does no
// DNS, give the next hop as an address.
func URIAddr(uri sip.Uri) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(strings.Trim(uri.Host, "[]"))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("next hop %q is not a numeric address, and siptest does no DNS: %w", uri.Host, bulkhead.Invalid)
	}
	port := uri.Port
	if port <= 0 || port > 65535 {
		port = 5060
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), nil
}

// nextHop is where a request goes by itself: its topmost Route, else its
// Request-URI (RFC 3261 section 8.1.2).
func nextHop(req *sip.Request) (netip.AddrPort, error) {
	if r := req.Route(); r != nil {
		return URIAddr(r.Address)
	}
	return URIAddr(req.Recipient)
}

// header returns the value of the first header of that name, or empty.
func header(msg interface{ GetHeader(string) sip.Header }, name string) string {
	if h := msg.GetHeader(name); h != nil {
		return h.Value()
	}
	return ""
}

// removeHeaders removes every header whose lower-case name matches.
func removeHeaders(req *sip.Request, match func(lower string) bool) {
	var names []string
	for _, h := range req.Headers() {
		if match(strings.ToLower(h.Name())) {
			names = append(names, h.Name())
		}
	}
	for _, n := range names {
		req.RemoveHeader(n)
	}
}

func named(name string) func(string) bool {
	return func(lower string) bool { return lower == name }
}

// tagOf returns the tag parameter.
func tagOf(p sip.HeaderParams) string {
	t, _ := p.Get("tag")
	return t
}

// StatusError is the final response by which a request was refused.
type StatusError struct {
	Code     int           // SIP status code, 300 to 699
	Reason   string        // reason phrase
	Response *sip.Response // the whole response
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("refused with %d %s", e.Code, e.Reason)
}

// Unwrap returns the matching bulkhead.Kind: Denied for 401, 403 and 407,
// NotFound for 404 and 604, Unavailable for 408, 480 and 5xx, else Conflict.
func (e *StatusError) Unwrap() error {
	switch {
	case e.Code == 401 || e.Code == 403 || e.Code == 407:
		return bulkhead.Denied
	case e.Code == 404 || e.Code == 604:
		return bulkhead.NotFound
	case e.Code == 408 || e.Code == 480 || e.Code/100 == 5:
		return bulkhead.Unavailable
	}
	return bulkhead.Conflict
}

func statusError(res *sip.Response) *StatusError {
	return &StatusError{Code: res.StatusCode, Reason: res.Reason, Response: res}
}
