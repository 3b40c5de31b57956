package freeswitchtest

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func huntIn(t *testing.T, doc, dest string) ([]action, []string) {
	t.Helper()
	root, err := parseXML(preprocess([]byte(doc), map[string]string{"hostname": "vm"}))
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{"destination_number": dest, "caller_id_number": "+4420", "hostname": "vm"}
	h := hunt{context: "public", value: func(n string) string { return vars[n] }, inline: func(a action) {
		k, v, _ := strings.Cut(a.data, "=")
		vars[k] = v
	}}
	return h.find(root), h.match
}

func section(body string) string {
	return `<document><section name="dialplan"><context name="public">` + body + `</context></section></document>`
}

func TestHunt(t *testing.T) {
	for name, c := range map[string]struct {
		doc, dest string
		want      []action
		match     []string
	}{
		"groups go into the data": {
			`<extension><condition field="destination_number" expression="^0(\d+)$"><action application="bridge" data="x/$1@$0"/></condition></extension>`,
			"0123", []action{{"bridge", "x/123@0123"}}, []string{"0123", "123"},
		},
		"all conditions must hold": {
			`<extension><condition field="destination_number" expression="^1"/><condition field="caller_id_number" expression="^\+99"><action application="a"/></condition></extension>
<extension><condition field="destination_number" expression="^1"/><condition field="caller_id_number" expression="^\+44"><action application="b"/></condition></extension>`,
			"12", []action{{"b", ""}}, nil,
		},
		"the first match ends the search, unless it continues": {
			`<extension continue="true"><condition><action application="a"/></condition></extension>
<extension><condition><action application="b"/></condition></extension><extension><condition><action application="c"/></condition></extension>`,
			"1", []action{{"a", ""}, {"b", ""}}, nil,
		},
		"anti-actions": {
			`<extension><condition field="destination_number" expression="^9" break="never"><action application="a"/><anti-action application="b"/></condition></extension>`,
			"1", []action{{"b", ""}}, nil,
		},
		"an inline set is seen by later conditions": {
			`<extension continue="true"><condition><action application="set" data="x=5" inline="true"/></condition></extension>
<extension><condition field="${x}" expression="^5$"><action application="a"/></condition></extension>`,
			"1", []action{{"a", ""}}, nil,
		},
		"an expression that is none matches nothing": {
			`<extension><condition field="destination_number" expression="(?=x"><action application="a"/></condition></extension>`, "1", nil, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, match := huntIn(t, section(c.doc), c.dest)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(action{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(c.match, match); diff != "" {
				t.Errorf("DP_MATCH (-want +got)\n%s", diff)
			}
		})
	}
}

// Capture failures/preprocessing-of-http-answers.txt.
func TestPreprocessing(t *testing.T) {
	in := "<?xml version=\"1.0\"?>\n<a b=\"$${hostname}\" c=\"$${none}\" d=\"${x}\"/>\n<include>\n" +
		"<X-PRE-PROCESS cmd=\"set\" data=\"made=here\"/>\n<X-PRE-PROCESS cmd=\"exec\" data=\"/bin/false\"/>\n<e f=\"$${made}\"/>\n$${open"
	want := "<a b=\"vm\" c=\"\" d=\"${x}\"/>\n<e f=\"here\"/>\n$${open"
	if got := string(preprocess([]byte(in), map[string]string{"hostname": "vm"})); got != want {
		t.Errorf("got %q", got)
	}
}

func TestExpand(t *testing.T) {
	value := func(n string) string { return map[string]string{"a": "1", "hostname": "vm"}[n] }
	for in, want := range map[string]string{
		"x${a}y": "x1y", "${none}": "", "${hostname()}": "vm", "${system(rm)}": "", "${open": "${open", "plain": "plain", "${a}${a}": "11",
	} {
		if got := expand(in, value); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestParseDial(t *testing.T) {
	for in, want := range map[string]dialTarget{
		"sofia/internal/1001@acme.example;fs_path=sip:10.0.0.1:5060": {profile: "internal", user: "1001", host: "acme.example", path: "10.0.0.1:5060"},
		"{a=1,b='x,y'}sofia/external/+4420@10.1.1.1:5080":            {profile: "external", user: "+4420", host: "10.1.1.1:5080", vars: fields{{name: "a", value: "1"}, {name: "b", value: "x,y"}}},
		"sofia/internal/1@h;transport=udp;fs_path=sip%3A10.0.0.1":    {profile: "internal", user: "1", host: "h", path: "10.0.0.1"},
	} {
		got, ok := parseDial(in)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(dialTarget{}, field{})); !ok || diff != "" {
			t.Errorf("%s: %v (-want +got)\n%s", in, ok, diff)
		}
	}
	for _, in := range []string{"", "user/1001", "sofia/internal/1001", "{a=1sofia/internal/1@h", "sofia/internal/1@h,sofia/internal/2@h", "sofia//1@h"} {
		if _, ok := parseDial(in); ok {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestParseTone(t *testing.T) {
	if got, ok := parseTone("tone_stream://%(1000,500,440);loops=2"); !ok || got.hz != 450 || got.loops != 2 || got.on.Seconds() != 1 {
		t.Errorf("%+v %v", got, ok)
	}
	for _, in := range []string{"/tmp/x.wav", "tone_stream://%(1)", "tone_stream://%(1,1,99999)", "tone_stream://%(1,1,440);loops=x"} {
		if _, ok := parseTone(in); ok {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for field, c := range map[string]Config{
		"ID":          {},
		"XMLURLs[0]":  {ID: "x", XMLURLs: []string{"ftp://x"}},
		"StaticXML":   {ID: "x", StaticXML: "<a>"},
		"MaxSessions": {ID: "x", MaxSessions: -1},
		"Heartbeat":   {ID: "x", Heartbeat: -1},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, c := range []Config{{ID: "x", Listen: "nonsense"}, {ID: "x", ESLListen: "256.1.1.1:0"}, {ID: "x", RTPIP: "nonsense"}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func FuzzDialplan(f *testing.F) {
	f.Add([]byte(section(`<extension><condition field="destination_number" expression="^(.*)$"><action application="bridge" data="sofia/internal/$1@h"/></condition></extension>`)))
	f.Add([]byte(staticXML))
	f.Add([]byte("$${a$${b}}\n<X-PRE-PROCESS cmd=\"set\" data=\"a=b\"/>\n<a>"))
	f.Add([]byte("{a='}sofia/x/${b}@c;fs_path=sip:"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if doc, err := parseXML(preprocess(b, nil)); err == nil {
			h := hunt{context: "public", value: func(string) string { return "1" }, inline: func(action) {}}
			for _, a := range h.find(doc) {
				parseDial(expand(a.data, h.value))
			}
		}
		parseDial(string(b))
		parseTone(string(b))
	})
}
