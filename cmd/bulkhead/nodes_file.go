package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/cdr"
	"github.com/bulkhead-voip/bulkhead/eventbridge"
)

// nodesFile is what "eventbridge --nodes" is told: which PBXs to hear, and
// whose their legs are. docs/attach-events.md describes it.
type nodesFile struct {
	cell  bulkhead.CellID
	nodes []listedNode
	rules []eventbridge.Rule
}

// listedNode is one PBX. Which of the logins there are depends on its kind.
type listedNode struct {
	id       bulkhead.NodeID
	kind     bulkhead.NodeKind
	pos      string // file:line
	events   login  // the event socket, or ARI
	jsonCDR  string // password with which the node posts records; empty: it does not
	errDir   string // its err-log-dir; empty: not swept
	doneDir  string // where swept files go; empty: they are deleted
	asterisk listedAsterisk
}

// listedAsterisk is what only an Asterisk has.
type listedAsterisk struct {
	outbound bool   // it connects to us; then events has no address
	app      string // Stasis application; empty: the default
	second   *login // AMI; nil: not used
	celFile  string // its channel event log; empty: not followed
	variable string // channel variable that holds the tenant's id; empty: the default
}

// login says how to reach a service of a PBX.
type login struct{ address, user, password string }

const (
	maxNodesFile   = 1 << 20 // bytes
	maxNodesErrors = 50
)

var fileID = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// readNodesFile reads the file at path. Everything that is wrong is returned
// at once, as bulkhead.FieldErrors with file and line; none quotes a password.
func readNodesFile(path string) (*nodesFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of nodes: %w: %w", bulkhead.Invalid, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxNodesFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the list of nodes %s: %w", path, err)
	}
	return parseNodesFile(path, data)
}

func parseNodesFile(path string, data []byte) (*nodesFile, error) {
	y := &yamlReader{name: filepath.Base(path), dir: filepath.Dir(path)}
	out := &nodesFile{}
	if root := y.document(data); root != nil {
		y.top(root, out)
	}
	if len(y.errs) == 0 {
		return out, nil
	}
	return nil, y.err()
}

func (y *yamlReader) top(root *yaml.Node, out *nodesFile) {
	out.cell = "cell"
	seen := map[string]*yaml.Node{}
	y.fields(root, "", map[string]func(*yaml.Node, string){
		"cell": func(n *yaml.Node, field string) { out.cell = bulkhead.CellID(y.id(n, field)) },
		"nodes": func(n *yaml.Node, field string) {
			seen["nodes"] = n
			y.list(n, field, func(c *yaml.Node, f string) { y.node(c, f, out) })
		},
		"tenants": func(n *yaml.Node, field string) {
			y.list(n, field, func(c *yaml.Node, f string) { y.tenant(c, f, out) })
		},
	})
	if len(out.nodes) == 0 && len(y.errs) == 0 {
		y.fail(cmp.Or(seen["nodes"], root), "nodes", "lists no node: there is nothing to hear")
	}
	for i, n := range out.nodes {
		if j := slices.IndexFunc(out.nodes, func(o listedNode) bool { return o.id == n.id }); j < i {
			y.errs = append(y.errs, &bulkhead.FieldError{
				Kind: bulkhead.Invalid, Field: "nodes", Pos: n.pos, Msg: fmt.Sprintf("node %q is there twice: the first is at %s", n.id, out.nodes[j].pos),
			})
		}
	}
}

func (y *yamlReader) node(n *yaml.Node, field string, out *nodesFile) {
	node := listedNode{pos: y.at(n), kind: bulkhead.FreeSWITCH}
	var events, ami yamlLogin
	fields := events.fields(y)
	maps.Copy(fields, map[string]func(*yaml.Node, string){
		"id":   func(n *yaml.Node, field string) { node.id = bulkhead.NodeID(y.id(n, field)) },
		"kind": func(n *yaml.Node, field string) { node.kind = bulkhead.NodeKind(y.text(n, field)) },
		"json_cdr": func(n *yaml.Node, field string) {
			node.jsonCDR, node.errDir, node.doneDir = y.jsonCDR(n, field)
		},
		"ami": func(n *yaml.Node, field string) {
			y.fields(n, field, ami.fields(y))
			l := ami.checked(y, n, field, true, true)
			node.asterisk.second = &l
		},
		"tenant_var": func(n *yaml.Node, field string) { node.asterisk.variable = y.text(n, field) },
		"outbound":   func(n *yaml.Node, field string) { node.asterisk.outbound = y.flag(n, field) },
		"app":        func(n *yaml.Node, field string) { node.asterisk.app = y.text(n, field) },
		"cel_file":   func(n *yaml.Node, field string) { node.asterisk.celFile = y.path(n, field) },
	})
	y.fields(n, field, fields)
	if n.Kind != yaml.MappingNode {
		return
	}
	if node.id == "" {
		y.fail(n, field, "has no id")
	}
	switch node.kind {
	case bulkhead.FreeSWITCH:
		if node.asterisk != (listedAsterisk{}) || events.user != "" {
			y.fail(n, field, "user, ami, tenant_var, outbound, app and cel_file are Asterisk's: leave them out, or say kind: asterisk")
		}
	case bulkhead.Asterisk:
		if node.jsonCDR != "" || node.errDir != "" {
			y.fail(n, field, "json_cdr is FreeSWITCH's: leave it out")
		}
	default:
		y.fail(n, field+".kind", "%s is neither freeswitch nor asterisk", strconv.Quote(string(node.kind)))
	}
	if node.asterisk.outbound {
		if events.address != "" {
			y.fail(n, field, "has an address, but outbound says that it connects to us: leave one out")
		}
	}
	node.events = events.checked(y, n, field, !node.asterisk.outbound, node.kind == bulkhead.Asterisk)
	out.nodes = append(out.nodes, node)
}

// yamlLogin collects the keys of a login.
type yamlLogin struct {
	login
	passwords int
}

func (l *yamlLogin) fields(y *yamlReader) map[string]func(*yaml.Node, string) {
	return map[string]func(*yaml.Node, string){
		"address": func(n *yaml.Node, field string) { l.address = y.address(n, field) },
		"user":    func(n *yaml.Node, field string) { l.user = y.text(n, field) },
		"password": func(n *yaml.Node, field string) {
			l.passwords++
			l.password = y.text(n, field)
		},
		"password_file": func(n *yaml.Node, field string) {
			l.passwords++
			l.password = y.secretFile(n, field)
		},
	}
}

// checked checks that the keys make a login, which needs an address or a user
// or both.
func (l *yamlLogin) checked(y *yamlReader, n *yaml.Node, field string, address, user bool) login {
	if address && l.address == "" {
		y.fail(n, field, "has no address")
	}
	if user && l.user == "" {
		y.fail(n, field, "has no user")
	}
	y.onePassword(n, field, l.passwords)
	return l.login
}

func (y *yamlReader) onePassword(n *yaml.Node, field string, given int) {
	switch given {
	case 0:
		y.fail(n, field, "has neither password nor password_file")
	case 2:
		y.fail(n, field, "has both password and password_file: leave one out")
	}
}

func (y *yamlReader) jsonCDR(n *yaml.Node, field string) (password, dir, done string) {
	given := 0
	y.fields(n, field, map[string]func(*yaml.Node, string){
		"password":      func(n *yaml.Node, field string) { given++; password = y.text(n, field) },
		"password_file": func(n *yaml.Node, field string) { given++; password = y.secretFile(n, field) },
		"err_log_dir":   func(n *yaml.Node, field string) { dir = y.path(n, field) },
		"done":          func(n *yaml.Node, field string) { done = y.path(n, field) },
	})
	if dir == "" || given > 0 { // a folder alone is enough for a switch that only writes files
		y.onePassword(n, field, given)
	}
	if done != "" && (dir == "" || filepath.Clean(done) == filepath.Clean(dir)) {
		y.fail(n, field+".done", "needs an err_log_dir, and must be another folder")
	}
	return password, dir, done
}

// The attributes that a rule may look at, besides var:NAME.
var ruleAttrs = []string{"account_code", "domain", "context", "profile", "callee", "caller"}

func (y *yamlReader) tenant(n *yaml.Node, field string, out *nodesFile) {
	var id bulkhead.TenantID
	before := len(out.rules)
	rules := func(prefix bool) func(*yaml.Node, string) {
		return func(n *yaml.Node, field string) {
			y.pairs(n, field, func(key, values *yaml.Node) {
				attr := key.Value
				if v, ok := strings.CutPrefix(attr, cdr.AttrVar); !slices.Contains(ruleAttrs, attr) && (!ok || v == "" || len(v) > 64) {
					y.fail(key, field, "%s is no attribute: there are %s, and var:NAME for a channel variable", strconv.Quote(attr), strings.Join(ruleAttrs, ", "))
					return
				}
				y.list(values, field+"."+attr, func(c *yaml.Node, f string) {
					v := y.text(c, f)
					r := eventbridge.Rule{Attr: attr, Value: v, Prefix: prefix}
					if v != "" && !y.owns(c, f, r) {
						out.rules = append(out.rules, r)
					}
				})
			})
		}
	}
	y.fields(n, field, map[string]func(*yaml.Node, string){
		"id":     func(n *yaml.Node, field string) { id = bulkhead.TenantID(y.id(n, field)) },
		"match":  rules(false),
		"prefix": rules(true),
	})
	if n.Kind == yaml.MappingNode && id == "" {
		y.fail(n, field, "has no id")
	}
	for i := before; i < len(out.rules); i++ {
		out.rules[i].Tenant = id
	}
	if n.Kind == yaml.MappingNode && before == len(out.rules) {
		y.fail(n, field, "has neither match nor prefix: nothing could be this tenant's")
	}
}

// owns reports a rule that another one says already.
func (y *yamlReader) owns(n *yaml.Node, field string, r eventbridge.Rule) bool {
	value := r.Value // in the form in which rules compare it
	switch r.Attr {
	case "domain":
		value = strings.ToLower(value)
	case "callee", "caller":
		value = strings.TrimPrefix(value, "+")
	}
	key := fmt.Sprintf("%t\x00%s\x00%s", r.Prefix, r.Attr, value)
	if first, ok := y.claimed[key]; ok {
		y.fail(n, field, "%s is there twice: the first is at %s", strconv.Quote(r.Value), first)
		return true
	}
	if y.claimed == nil {
		y.claimed = map[string]string{}
	}
	y.claimed[key] = y.at(n)
	return false
}
