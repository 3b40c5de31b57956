package freeswitchtest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// version is the one that the captures are of.
const version = "1.11.3-dev"

func apiFrame(body string) []byte {
	return fmt.Appendf(nil, "Content-Type: api/response\nContent-Length: %d\n\n%s", len(body), body)
}

// api runs one API command: those of captures esl/commands.txt,
// esl/api-during-bridge.txt and esl/json-bgapi.txt.
func (n *Node) api(line string) string {
	name, arg, _ := strings.Cut(line, " ")
	arg = strings.TrimSpace(arg)
	switch name {
	case "status":
		return n.status()
	case "show":
		return n.show(strings.Fields(arg))
	case "uuid_exists":
		return strconv.FormatBool(n.sessions.leg(arg) != nil)
	case "uuid_kill":
		return n.uuidKill(arg)
	case "json":
		return n.apiJSON(arg)
	case "hostname":
		return n.cfg.ID
	case "global_getvar":
		return n.globals[arg]
	case "xml_flush_cache": // fact 16; no capture shows what it prints
		n.directory.clear()
		return "+OK\n"
	case "version":
		return "FreeSWITCH Version " + version + " (freeswitchtest)\n"
	}
	return "-ERR " + clip(name, 200) + " Command not found!\n"
}

func (n *Node) uuidKill(arg string) string {
	id, why, _ := strings.Cut(arg, " ")
	l := n.sessions.leg(id)
	if l == nil {
		return "-ERR No such channel!\n"
	}
	if why == "" {
		why = string(causeNormal)
	}
	l.kill(cause(why))
	return "+OK\n"
}

// uptime splits the time since the start the way FreeSWITCH prints it.
func (n *Node) uptime() (years, days, hours, minutes, seconds, millis, micros int64) {
	us := time.Since(n.started).Microseconds()
	micros = us % 1000
	millis = us / 1000 % 1000
	s := us / 1_000_000
	return s / (365 * 86400), s / 86400 % 365, s / 3600 % 24, s / 60 % 60, s % 60, millis, micros
}

func (n *Node) uptimeText() string {
	y, d, h, m, s, ms, us := n.uptime()
	return fmt.Sprintf("%d year%s, %d day%s, %d hour%s, %d minute%s, %d second%s, %d millisecond%s, %d microsecond%s",
		y, plural(y), d, plural(d), h, plural(h), m, plural(m), s, plural(s), ms, plural(ms), us, plural(us))
}

func plural(n int64) string {
	if n == 1 {
		return ""
	}
	return "s"
}

func (n *Node) status() string {
	c := n.sessions.counts()
	return fmt.Sprintf("UP %s\nFreeSWITCH (Version %s  64bit) is ready\n%d session(s) since startup\n%d session(s) - peak %d, last 5min %d \n"+
		"%d session(s) per Sec out of max %d, peak %d, last 5min %d \n%d session(s) max\nmin idle cpu 0.00/%.2f\nCurrent Stack Size/Max 240K/8192K\n",
		n.uptimeText(), version, c.total, c.active, c.peak, c.peak5, c.last, n.cfg.MaxSessionsPerSecond, c.ratePeak, c.ratePeak5, n.cfg.MaxSessions, n.cfg.IdleCPU())
}

// apiJSON is "json {"command":"status","data":{}}".
func (n *Node) apiJSON(arg string) string {
	var req struct {
		Command string          `json:"command"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal([]byte(arg), &req); err != nil {
		return `{"status":"error","message":"Parse error"}`
	}
	data := "{}"
	if len(req.Data) > 0 {
		data = string(req.Data)
	}
	if req.Command != "status" {
		return fmt.Sprintf(`{"command":%s,"data":%s,"status":"error","message":"Invalid request or non-existant command"}`,
			appendJSONString(nil, req.Command), data)
	}
	c := n.sessions.counts()
	y, d, h, m, s, ms, us := n.uptime()
	return fmt.Sprintf(`{"command":"status","data":%s,"status":"success","response":{"systemStatus":"ready",`+
		`"uptime":{"years":%d,"days":%d,"hours":%d,"minutes":%d,"seconds":%d,"milliseconds":%d,"microseconds":%d},`+
		`"version":"%s  64bit","sessions":{"count":{"total":%d,"active":%d,"peak":%d,"peak5Min":%d,"limit":%d},`+
		`"rate":{"current":%d,"max":%d,"peak":%d,"peak5Min":%d}},"idleCPU":{"used":0,"allowed":%.1f},"stackSizeKB":{"current":240,"max":8192}}}`,
		data, y, d, h, m, s, ms, us, version, c.total, c.active, c.peak, c.peak5, n.cfg.MaxSessions,
		c.last, n.cfg.MaxSessionsPerSecond, c.ratePeak, c.ratePeak5, n.cfg.IdleCPU())
}

// show is "show channels|calls [as json|count]" (capture esl/api-during-bridge.txt).
func (n *Node) show(args []string) string {
	if len(args) == 0 || (args[0] != "channels" && args[0] != "calls") {
		return "-USAGE: show channels|calls [count] [as json]\n"
	}
	rows := n.sessions.channelRows(n.cfg.ID)
	if args[0] == "calls" {
		rows = n.sessions.callRows(n.cfg.ID)
	}
	switch mode := strings.Join(args[1:], " "); mode {
	case "as json":
		return rowsJSON(rows)
	case "count":
		return fmt.Sprintf("\n%d total.\n", len(rows))
	default:
		return rowsCSV(rows)
	}
}

func rowsJSON(rows []fields) string {
	if len(rows) == 0 {
		return `{"row_count": 0}` + "\n" // with a space, and a newline: capture esl/commands.txt
	}
	b := fmt.Appendf(nil, `{"row_count":%d,"rows":[`, len(rows))
	for i, r := range rows {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSON(b, r)
	}
	return string(append(b, "]}"...))
}

func rowsCSV(rows []fields) string {
	var b strings.Builder
	for i, r := range rows {
		var names, values []string
		for _, f := range r {
			names, values = append(names, f.name), append(values, f.text())
		}
		if i == 0 {
			b.WriteString(strings.Join(names, ",") + "\n")
		}
		b.WriteString(strings.Join(values, ",") + "\n")
	}
	fmt.Fprintf(&b, "\n%d total.\n", len(rows))
	return b.String()
}
