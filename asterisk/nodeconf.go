package asterisk

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"text/template"

	"github.com/bulkhead-voip/bulkhead"
)

// NodeParams fills in the configuration of one Asterisk that asks Bulkhead.
// Empty fields stand for their defaults.
type NodeParams struct {
	Node  bulkhead.NodeID
	Token string   // of the node
	URLs  []string // of configsvc without a path, in the order of asking: http://127.0.0.1:8080

	Attach bool // into a configuration that is there, instead of a whole one
	// Own are the operator's own endpoints whose calls Bulkhead is asked about. With Attach.
	Own   []OwnEndpoint
	Defer bool // the node leaves unmanaged calls to what is there

	SIP              string // ip:port to take SIP on, UDP and TCP: 0.0.0.0:5060
	RTPStart, RTPEnd int    // UDP ports: 10000 to 20000
	Recordings       string // folder on the node: /var/spool/asterisk/monitor

	CacheUser   string // of AMI, to expire cached objects: bulkhead-cache
	CacheSecret string
	CachePermit []string // addresses that may do so: loopback

	Events Params // as for RenderConf
}

// OwnEndpoint is an endpoint in the operator's own pjsip.conf.
type OwnEndpoint struct {
	Name    string // its section
	Context string // where its calls go that Bulkhead leaves to him
	Tenant  bulkhead.TenantID
	User    string // which user of the tenant it is; empty: none
}

// nodeValues is what the templates see.
type nodeValues struct {
	NodeParams
	Families    []string // of extconfig.conf
	Objects     []string // of sorcery.conf that have a cache each
	Actions     []string // steps of a plan
	HeaderSlots []int
}

var nodeFamilies = []string{"ps_endpoints", "ps_auths", "ps_aors", "ps_domain_aliases", "ps_endpoint_id_ips", "voicemail"}

// cachedObjects are pjsip's types of object that are asked for one by one.
var cachedObjects = []string{"endpoint", "auth", "aor", "domain_alias"}

// stepActions are the steps that the shipped dialplan knows.
var stepActions = []string{"dial", "play", "voicemail", "reject", "context", "ivr", "queue", "conference"}

// headerSlots is how many headers a call to a trunk may be given.
const headerSlots = 16

// RenderNode returns the files of a node's configuration, by their paths below
// /etc/asterisk: all of them, or with Attach those that Attach's lines include.
// Wrong parameters are bulkhead.Invalid.
func RenderNode(p NodeParams) ([]ConfFile, error) {
	v, err := p.values()
	if err != nil {
		return nil, fmt.Errorf("asterisk configuration of node %q: %w", p.Node, err)
	}
	var out []ConfFile
	err = fs.WalkDir(confFiles, "conf/node", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel := strings.TrimPrefix(name, "conf/node/")
		if p.Attach && path.Dir(rel) != "bulkhead" || !p.Attach && rel == "bulkhead/pjsip_own.conf" {
			return nil
		}
		body, err := confFiles.ReadFile(name)
		if err != nil {
			return err
		}
		t, err := template.New(rel).Option("missingkey=error").Funcs(template.FuncMap{"inc": func(i int) int { return i + 1 }}).Parse(string(body))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, v); err != nil {
			return err
		}
		out = append(out, ConfFile{Path: rel, Text: b.Bytes()})
		return nil
	})
	if err == nil && !p.Attach {
		var events []ConfFile
		if events, err = RenderConf(p.Events); err == nil {
			for _, f := range events {
				out = append(out, ConfFile{Path: "bulkhead/" + f.Path, Text: f.Text})
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("asterisk configuration of node %q: %w", p.Node, err)
	}
	return out, nil
}

func (p NodeParams) values() (nodeValues, error) {
	set := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	set(&p.SIP, "0.0.0.0:5060")
	set(&p.Recordings, "/var/spool/asterisk/monitor")
	set(&p.CacheUser, "bulkhead-cache")
	if p.RTPStart == 0 && p.RTPEnd == 0 {
		p.RTPStart, p.RTPEnd = 10000, 20000
	}
	if len(p.URLs) == 0 {
		p.URLs = []string{"http://127.0.0.1:8080"}
	}
	if len(p.CachePermit) == 0 {
		p.CachePermit = []string{"127.0.0.0/8"}
	}
	v := nodeValues{NodeParams: p, Families: nodeFamilies, Objects: cachedObjects, Actions: stepActions}
	for i := range headerSlots {
		v.HeaderSlots = append(v.HeaderSlots, i+1)
	}
	bad := func(field, format string, args ...any) error {
		return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	_, sip := netip.ParseAddrPort(p.SIP)
	switch {
	case !only(string(p.Node), 63, "-_"):
		return v, bad("node", "%q is not a node's id", p.Node)
	case !only(p.Token, 128, "-_.~") || len(p.Token) < 16:
		return v, bad("token", "it has fewer than 16 characters, or others than letters, digits and -_.~")
	case sip != nil:
		return v, bad("sip", "%q is not ip:port", p.SIP)
	case p.RTPStart < 1024 || p.RTPEnd > 65535 || p.RTPEnd < p.RTPStart+3:
		return v, bad("rtp", "%d to %d is no range of ports above 1023", p.RTPStart, p.RTPEnd)
	case !only(p.Recordings, 200, "/-_.") || !path.IsAbs(p.Recordings):
		return v, bad("recordings", "%q is not a path from / of letters, digits and -_.", p.Recordings)
	case !userForm.MatchString(p.CacheUser) || p.CacheUser == "general":
		return v, bad("cache_user", "%q is not a name of letters, digits, - and _", p.CacheUser)
	case !secretForm.MatchString(p.CacheSecret):
		return v, bad("cache_secret", "it has fewer than 8 characters, or one of ; [ ] ( ) { } \\ \" ' $ or space")
	case len(p.URLs) > 2:
		return v, bad("urls", "there are %d: Asterisk can be given two", len(p.URLs))
	}
	v.URLs = nil
	for i, s := range p.URLs {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || strings.ContainsAny(s, ",;$(){} \"\r\n\t") {
			return v, bad(fmt.Sprintf("urls[%d]", i), "%q is not as http://127.0.0.1:8080", s)
		}
		// What Asterisk can send is HTTP Basic with the credentials in the URL.
		u.User, u.Path = url.UserPassword(string(p.Node), p.Token), ""
		v.URLs = append(v.URLs, u.String())
	}
	for i, o := range p.Own {
		if !only(o.Name, 128, "-_.@+") || !only(o.Context, 79, "-_.") || o.Tenant != "" && !only(string(o.Tenant), 63, "-_") || o.User != "" && !isExtension(o.User) {
			return v, bad(fmt.Sprintf("own[%d]", i), "%+v has a name of other than letters, digits and -_.", o)
		}
	}
	for i, s := range p.CachePermit {
		n, err := netip.ParsePrefix(s)
		if err != nil {
			return v, bad(fmt.Sprintf("cache_permit[%d]", i), "%q is not a network", s)
		}
		v.CachePermit[i] = permit(n)
	}
	return v, nil
}
