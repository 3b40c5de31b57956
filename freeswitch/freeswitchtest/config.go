package freeswitchtest

import (
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"github.com/bulkhead-voip/bulkhead"
)

// Config is the configuration of a Node.
type Config struct {
	// ID is the node's hostname and switchname in forms and events. Required.
	ID string
	// Listen is the SIP address, one numeric ip:port. Empty: 127.0.0.1:0.
	Listen string
	// RTPIP is the address of RTP streams. Empty: the one of Listen.
	RTPIP string
	// SIPT1 is the SIP round trip estimate (RFC 3261 section 17.1.1.1); every SIP
	// timeout hangs on it. 0: 500 ms.
	SIPT1 time.Duration

	// ESLListen is the event socket's address. Empty: 127.0.0.1:0.
	ESLListen string
	// ESLPassword; empty: ClueCon, as FreeSWITCH ships it.
	ESLPassword string
	// ESLQueue is how many events wait for one client that does not read; 500
	// lost ones more and it is cut off. 0: 10000 (a real one: 100000).
	ESLQueue int
	// Heartbeat is the period of HEARTBEAT. 0: 20 s.
	Heartbeat time.Duration
	// IdleCPU gives the Idle-CPU of HEARTBEAT, in percent. Nil: always 95.
	IdleCPU func() float64

	// XMLURLs are the bindings of mod_xml_curl for the dialplan, asked in order
	// until one answers. Empty: only the static dialplan.
	XMLURLs []string
	// XMLUser and XMLPassword are sent as Basic authentication, unasked. An empty
	// user sends none.
	XMLUser, XMLPassword string
	// XMLTimeout bounds one request. A real one knows whole seconds only. 0: no
	// limit, as in a real one.
	XMLTimeout time.Duration
	// XMLPostVars cuts the form to these fields and the fixed five, as
	// enable-post-var does. Empty: all fields.
	XMLPostVars []string
	// StaticXML is the dialplan for calls that no binding decided. Empty: one that
	// responds 503 to everything, as Bulkhead ships it.
	StaticXML string
	// Context is the dialplan context of every call that comes in. Empty: public,
	// as captured; Bulkhead's sofia profile says bulkhead.
	Context string

	// CDR is mod_json_cdr's configuration. Zero: it is not loaded.
	CDR CDRConfig

	// MaxSessions bounds the legs at one time; a bridged call has two. 0: 1000.
	MaxSessions int
	// MaxSessionsPerSecond bounds the legs begun in one second. 0: 200.
	MaxSessionsPerSecond int

	// Logger; nil discards. No password is logged.
	Logger *slog.Logger
}

// staticXML is the static dialplan that a node has behind its bindings: a call
// that nobody could decide must fail in a way that makes the SBC try another
// node (fact 8 of the captures' README).
const staticXML = `<document type="freeswitch/xml">
<section name="dialplan">
<context name="global">
<extension name="nobody-decided">
<condition>
<action application="respond" data="503 Service Unavailable"/>
</condition>
</extension>
</context>
</section>
</document>`

// withDefaults fills in what is empty.
func (c Config) withDefaults() Config {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Listen, "127.0.0.1:0")
	def(&c.ESLListen, "127.0.0.1:0")
	def(&c.ESLPassword, "ClueCon")
	def(&c.StaticXML, staticXML)
	def(&c.Context, "public")
	if ap, err := netip.ParseAddrPort(c.Listen); err == nil {
		def(&c.RTPIP, ap.Addr().String())
	}
	if c.ESLQueue == 0 {
		c.ESLQueue = 10000
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 20 * time.Second
	}
	if c.IdleCPU == nil {
		c.IdleCPU = func() float64 { return 95 }
	}
	if c.MaxSessions == 0 {
		c.MaxSessions = 1000
	}
	if c.MaxSessionsPerSecond == 0 {
		c.MaxSessionsPerSecond = 200
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports the first field that is wrong, with kind bulkhead.Invalid.
func (c Config) Validate() error {
	bad := func(field, format string, args ...any) error {
		return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	switch {
	case c.ID == "":
		return bad("ID", "give the node a name")
	case c.ESLQueue < 0:
		return bad("ESLQueue", "%d is negative", c.ESLQueue)
	case c.Heartbeat < 0 || c.XMLTimeout < 0 || c.SIPT1 < 0:
		return bad("Heartbeat, XMLTimeout, SIPT1", "a duration is negative")
	case c.MaxSessions < 0 || c.MaxSessionsPerSecond < 0:
		return bad("MaxSessions, MaxSessionsPerSecond", "a limit is negative")
	}
	for i, s := range c.XMLURLs {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return bad(fmt.Sprintf("XMLURLs[%d]", i), "want an http or https URL")
		}
	}
	if c.StaticXML != "" {
		if _, err := parseXML(preprocess([]byte(c.StaticXML), nil)); err != nil {
			return bad("StaticXML", "%v", err)
		}
	}
	return nil
}
