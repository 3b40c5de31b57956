package freeswitch

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync"
	"text/template"

	"github.com/bulkhead-voip/bulkhead"
)

//go:embed conf
var confFiles embed.FS

// Params fills in the configuration of one node.
type Params struct {
	Node  bulkhead.NodeID
	Token string // the node's token for configsvc
	// URLs of configsvc's /freeswitch/xml, tried in order: the agent on the
	// node's loopback and a central one behind it. At least one.
	URLs []string

	SIP         string   // ip:port of the profile
	SBCs        []string // ip:port of each SBC of the cell; at least one
	ESL         string   // ip:port of mod_event_socket
	ESLPassword string
	Bridges     []string // addresses of the event bridges; empty: loopback

	// CDRURLs are the URLs of the event bridge's /freeswitch/cdr, at most 20,
	// tried in turn; none: mod_json_cdr is not configured.
	CDRURLs []string
	// CDRErrDir is the folder for records that could not be posted, as an
	// absolute path, which the event bridge sweeps. Required with CDRURLs.
	CDRErrDir string
}

// BindingsFile is the file by which a FreeSWITCH asks Bulkhead; it alone is
// added to a switch that has a configuration of its own.
const BindingsFile = "autoload_configs/xml_curl.conf.xml"

const jsonCDRConf = "autoload_configs/json_cdr.conf.xml"

// ConfFile is a file of a FreeSWITCH configuration.
type ConfFile struct {
	Path string // below the switch's configuration folder
	Text []byte
}

// RenderConf returns the node's configuration files in the order of their
// paths. Wrong parameters are bulkhead.Invalid; the default ESL password is
// bulkhead.Denied.
func RenderConf(p Params) ([]ConfFile, error) {
	v, err := p.values()
	if err != nil {
		return nil, fmt.Errorf("freeswitch configuration of node %q: %w", p.Node, err)
	}
	var out []ConfFile
	err = fs.WalkDir(confFiles, "conf", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name == "conf/"+jsonCDRConf && len(p.CDRURLs) == 0 {
			return nil
		}
		text, err := renderFile(name, v)
		out = append(out, ConfFile{Path: strings.TrimPrefix(name, "conf/"), Text: text})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("freeswitch configuration of node %q: %w", p.Node, err)
	}
	return out, nil
}

func renderFile(name string, v confValues) ([]byte, error) {
	text, err := confFiles.ReadFile(name)
	if err != nil {
		return nil, err
	}
	t, err := template.New(name).Funcs(template.FuncMap{"xml": xmlText}).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, v)
	return b.Bytes(), err
}

// renderBindings returns the bindings for a switch that has a configuration of
// its own, which it keeps: it asks for the dialplan and the directory alone.
func renderBindings(p Params) (string, error) {
	v, err := p.asking()
	if err != nil {
		return "", fmt.Errorf("freeswitch configuration of node %q: %w", p.Node, err)
	}
	v.Sections = "dialplan|directory"
	text, err := renderFile("conf/"+BindingsFile, v)
	if err != nil {
		return "", fmt.Errorf("freeswitch configuration of node %q: %w", p.Node, err)
	}
	_, rest, _ := strings.Cut(string(text), "<bindings>\n")
	bindings, _, ok := strings.Cut(rest, "  </bindings>")
	if !ok {
		return "", fmt.Errorf("%s holds no bindings: %w", BindingsFile, bulkhead.Invalid)
	}
	return bindings, nil
}

// profileTemplate is the shipped profile without its comments and what
// includes it.
var profileTemplate = sync.OnceValues(func() (*template.Template, error) {
	text, err := confFiles.ReadFile("conf/" + profileConf)
	if err != nil {
		return nil, err
	}
	text = comments.ReplaceAll(text, nil)
	i, j := bytes.Index(text, []byte("<profile ")), bytes.Index(text, []byte("</include>"))
	if i < 0 || j < i {
		return nil, fmt.Errorf("%s holds no profile: %w", profileConf, bulkhead.Invalid)
	}
	return template.New(profileConf).Funcs(template.FuncMap{"xml": xmlText}).Parse(string(text[i:j]))
})

const profileConf = "sip_profiles/internal.xml"

// comments are XML comments with the line that they leave empty.
var comments = regexp.MustCompile(`(?s)[ \t]*<!--.*?-->\n?`)

// renderProfile returns the shipped profile at an address.
func renderProfile(a netip.AddrPort) ([]byte, error) {
	t, err := profileTemplate()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, confValues{SIPIP: a.Addr().String(), SIPPort: a.Port()})
	return b.Bytes(), err
}

func xmlText(s string) string { return string(escape(nil, s)) }

// confValues is what the templates see.
type confValues struct {
	Params
	SIPIP, ESLIP     string
	SIPPort, ESLPort uint16
	SBCs, Bridges    []string // as CIDR
	ESLACL           string

	Sections           string // that the bindings are for
	CurlURL, CurlQuery string // of mod_curl
	Fields             []string
}

func badParam(field, format string, args ...any) error {
	return &bulkhead.FieldError{Kind: bulkhead.Invalid, Field: field, Msg: fmt.Sprintf(format, args...)}
}

// asking checks what a switch needs to ask.
func (p Params) asking() (confValues, error) {
	v := confValues{Params: p, Fields: requestFields(), Sections: "dialplan|directory|configuration"}
	if !isID(string(p.Node)) {
		return v, badParam("node", "%q is not a node's id", p.Node)
	}
	if !isSecret(p.Token) || strings.Contains(p.Token, ":") {
		return v, badParam("token", "it is empty or holds a space, a control character or one of : $ { } < > \"")
	}
	if len(p.URLs) == 0 {
		return v, badParam("urls", "a node needs a URL of configsvc")
	}
	for i, s := range p.URLs {
		if !isURL(s) {
			return v, badParam(fmt.Sprintf("urls[%d]", i), "%q is no http or https URL without a password in it", s)
		}
	}
	return v, nil
}

// values checks everything.
func (p Params) values() (confValues, error) {
	v, err := p.asking()
	if err != nil {
		return v, err
	}
	if p.ESLPassword == defaultPassword {
		return v, fmt.Errorf("esl_password: it is FreeSWITCH's default, which everybody knows: %w", bulkhead.Denied)
	}
	if !isSecret(p.ESLPassword) {
		return v, badParam("esl_password", "it is empty or holds a space, a control character or one of $ { } < > \"")
	}
	if len(p.SBCs) == 0 {
		return v, badParam("sbcs", "a node of Bulkhead's alone needs an SBC")
	}
	for i, s := range p.CDRURLs {
		// The switch puts ?uuid= behind it, whatever it holds.
		if !isURL(s) || strings.Contains(s, "?") || i >= 20 {
			return v, badParam(fmt.Sprintf("cdr_urls[%d]", i), "%q is no http or https URL without a password and a query in it, or the 21st", s)
		}
	}
	if len(p.CDRURLs) > 0 && (!path.IsAbs(p.CDRErrDir) || !isSecret(p.CDRErrDir)) {
		return v, badParam("cdr_err_dir", "%q is no absolute path without spaces and $ { } < > \"", p.CDRErrDir)
	}
	v.CurlURL, v.CurlQuery = curlURL(p.URLs[0], p.Node, p.Token), curlArguments()
	sip, err := netip.ParseAddrPort(p.SIP)
	if err != nil {
		return v, badParam("sip", "%q is not ip:port", p.SIP)
	}
	esl, err := netip.ParseAddrPort(p.ESL)
	if err != nil {
		return v, badParam("esl", "%q is not ip:port: name the address to listen on", p.ESL)
	}
	v.SIPIP, v.SIPPort, v.ESLIP, v.ESLPort = sip.Addr().String(), sip.Port(), esl.Addr().String(), esl.Port()
	for i, s := range p.SBCs {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return v, badParam(fmt.Sprintf("sbcs[%d]", i), "%q is not ip:port", s)
		}
		v.SBCs = append(v.SBCs, cidr(a.Addr()))
	}
	for i, s := range p.Bridges {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return v, badParam(fmt.Sprintf("bridges[%d]", i), "%q is not an address", s)
		}
		v.Bridges = append(v.Bridges, cidr(a))
	}
	v.ESLACL = "loopback.auto" // a list that FreeSWITCH makes itself
	if len(v.Bridges) > 0 {
		v.ESLACL = strings.Join(v.Bridges, ",")
	}
	return v, nil
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && isSecret(s)
}

func cidr(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// isSecret tells what can stand in a configuration file without meaning
// anything to FreeSWITCH's pre-processor.
func isSecret(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || strings.IndexByte(`${}<>"`, s[i]) >= 0 {
			return false
		}
	}
	return s != ""
}

// requestFields names the fields that ParseRequest reads, but for the fixed
// ones, which every request has.
func requestFields() []string {
	return []string{
		"Hunt-Destination-Number", "Hunt-Context", "Hunt-Transfer-Source", "Caller-Transfer-Source", "Unique-ID", "Call-Direction",
		"variable_sip_call_id", "variable_sip_network_ip", "variable_sip_network_port",
		"variable_sip_h_X-Bulkhead-Tenant", "variable_sip_h_X-Bulkhead-User", "variable_sip_h_X-Bulkhead-SBC", "variable_sip_h_X-Bulkhead-Revision",
		"variable_" + varTenant, "variable_" + varSBC, "variable_" + varDialled, "variable_" + varTime, "variable_" + varHandover, "variable_" + varContext,
		"variable_current_application", "variable_sofia_profile_name", "variable_sip_req_host", "variable_sip_from_user", "Hunt-Caller-ID-Number",
		"variable_sip_authorized", "variable_sip_auth_username", "variable_sip_auth_realm",
		"action", "purpose", "domain", "user", "key", "group_name", "sip_auth_realm", "sip_auth_method",
	}
}
