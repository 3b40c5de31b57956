package asterisk

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"text/template"

	"github.com/bulkhead-voip/bulkhead"
)

//go:embed conf
var confFiles embed.FS

// Params fills in what is added to the configuration of one Asterisk so that
// its call events can be heard. Empty fields stand for their defaults.
type Params struct {
	User      string   // of ARI and AMI: bulkhead
	Password  string   // of ARI; required
	Secret    string   // of AMI: Password
	TenantVar string   // as in Config: TENANT
	App       string   // as in ARI: bulkhead-events
	HTTP      string   // ip:port of Asterisk's HTTP server: 127.0.0.1:8088
	AMI       string   // ip:port of AMI: 127.0.0.1:5038
	Bridges   []string // addresses of the event bridges: loopback
	// OutboundURL is the ws:// or wss:// URL of an Outbound source, for an
	// Asterisk that connects by itself; empty: it does not.
	OutboundURL string
}

// ConfFile is a file of an Asterisk configuration.
type ConfFile struct {
	Path string // below bulkhead/ in Asterisk's configuration folder
	Text []byte
}

var (
	userForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,62}$`)
	varForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	// secretForm leaves out what Asterisk's configuration takes for a comment, a
	// section, a template or a line end.
	secretForm = regexp.MustCompile(`^[A-Za-z0-9!#%&*+,./:<=>?@^_|~-]{8,128}$`)
)

// confValues is what the templates see.
type confValues struct {
	Params
	HTTPHost, AMIHost string
	HTTPPort, AMIPort uint16
	Bridges           []string // as address/mask
	OutboundTLS       bool
}

// RenderConf returns the files to be included, in the order of their paths.
// Wrong parameters are bulkhead.Invalid.
func RenderConf(p Params) ([]ConfFile, error) {
	v, err := p.values()
	if err != nil {
		return nil, fmt.Errorf("asterisk configuration: %w", err)
	}
	var out []ConfFile
	err = fs.WalkDir(confFiles, "conf", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path == "conf/node" {
				return fs.SkipDir // the files of RenderNode
			}
			return nil
		}
		body, err := confFiles.ReadFile(path)
		if err != nil {
			return err
		}
		t, err := template.New(path).Option("missingkey=error").Parse(string(body))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, v); err != nil {
			return err
		}
		out = append(out, ConfFile{Path: strings.TrimPrefix(path, "conf/"), Text: b.Bytes()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("asterisk configuration: %w", err)
	}
	return out, nil
}

func (p Params) values() (confValues, error) {
	set := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	set(&p.User, "bulkhead")
	set(&p.Secret, p.Password)
	set(&p.TenantVar, "TENANT")
	set(&p.App, "bulkhead-events")
	set(&p.HTTP, "127.0.0.1:8088")
	set(&p.AMI, "127.0.0.1:5038")
	v := confValues{Params: p}
	bad := func(field, format string, args ...any) error {
		return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
	}
	switch {
	case !userForm.MatchString(p.User) || p.User == "general":
		return v, bad("user", "%q is not a name of letters, digits, - and _", p.User)
	case !secretForm.MatchString(p.Password):
		return v, bad("password", "it has fewer than 8 characters, or one of ; [ ] ( ) { } \\ \" ' $ or space")
	case !secretForm.MatchString(p.Secret):
		return v, bad("secret", "it has fewer than 8 characters, or one of ; [ ] ( ) { } \\ \" ' $ or space")
	case !varForm.MatchString(p.TenantVar):
		return v, bad("tenant_var", "%q is not the name of a channel variable", p.TenantVar)
	case !userForm.MatchString(p.App):
		return v, bad("app", "%q is not a name of letters, digits, - and _", p.App)
	}
	http, err := netip.ParseAddrPort(p.HTTP)
	if err != nil {
		return v, bad("http", "%q is not ip:port", p.HTTP)
	}
	ami, err := netip.ParseAddrPort(p.AMI)
	if err != nil {
		return v, bad("ami", "%q is not ip:port", p.AMI)
	}
	v.HTTPHost, v.HTTPPort, v.AMIHost, v.AMIPort = http.Addr().String(), http.Port(), ami.Addr().String(), ami.Port()
	for i, s := range p.Bridges {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return v, bad(fmt.Sprintf("bridges[%d]", i), "%q is not an address", s)
		}
		v.Bridges = append(v.Bridges, permit(netip.PrefixFrom(a, a.BitLen())))
	}
	if len(v.Bridges) == 0 {
		v.Bridges = []string{permit(netip.MustParsePrefix("127.0.0.0/8"))}
	}
	if p.OutboundURL != "" {
		u, err := url.Parse(p.OutboundURL)
		if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" || u.User != nil || strings.ContainsAny(p.OutboundURL, "; \r\n\t") {
			return v, bad("outbound_url", "%q is no ws:// or wss:// URL without a password in it", p.OutboundURL)
		}
		v.OutboundTLS = u.Scheme == "wss"
	}
	return v, nil
}

// permit writes a network as Asterisk's ACLs want it.
func permit(p netip.Prefix) string { return p.Masked().String() }
