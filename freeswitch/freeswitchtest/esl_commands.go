package freeswitchtest

import (
	"crypto/subtle"
	"strings"
)

// command obeys one command. Commands match by their first letters, so that
// "exit_not" disconnects (fact 37). The replies are those of capture
// esl/commands.txt.
func (c *client) command(cmd command) {
	line := cmd.line
	has := func(prefix string) bool {
		return len(line) >= len(prefix) && strings.EqualFold(line[:len(prefix)], prefix)
	}
	rest := func(prefix string) string { return strings.TrimSpace(line[len(prefix):]) }
	switch {
	case has("exit"):
		c.reply("+OK bye")
		c.notice(goodbye)
		c.closed = true
	case has("auth "):
		if subtle.ConstantTimeCompare([]byte(rest("auth ")), []byte(c.n.cfg.ESLPassword)) != 1 {
			c.reply("-ERR invalid") // capture esl/auth-wrong.txt
			c.notice(goodbye)
			c.closed = true
			return
		}
		c.authed = true
		c.reply("+OK accepted")
	case !c.authed:
		c.reply("-ERR command not found") // capture esl/before-auth.txt
	case has("api "):
		body := c.n.api(rest("api "))
		c.writeBytes(apiFrame(body))
	case has("bgapi "):
		c.bgapi(rest("bgapi "), cmd.headers)
	case has("event"):
		c.subscribe(strings.Fields(rest("event")))
	case has("nixevent"):
		c.nix(strings.Fields(rest("nixevent")))
	case has("noevents"):
		c.noEvents()
	case has("filter"):
		c.filter(rest("filter"))
	case has("sendevent"):
		c.sendEvent(rest("sendevent"), cmd)
	case has("nolinger"), has("linger"):
		c.reply("-ERR not controlling a session")
	case has("divert_events"):
		c.reply("-ERR not controlling a session.")
	case has("nolog"):
		c.reply("+OK no longer logging")
	case has("log"):
		c.logLevel(rest("log"))
	default:
		c.reply("-ERR command not found")
	}
}

// logLevel acknowledges; no log lines are sent.
func (c *client) logLevel(level string) {
	number := map[string]string{"alert": "1", "crit": "2", "err": "3", "warning": "4", "notice": "5", "info": "6", "debug": "7"}[level]
	if number == "" {
		level, number = "debug", "7"
	}
	c.reply("+OK log level " + level + " [" + number + "]")
}

// subscribe is "event plain|json NAME... CUSTOM subclass...". Unknown names are
// ignored if one is known. The format is the whole connection's.
func (c *client) subscribe(args []string) {
	if len(args) > 0 && strings.EqualFold(args[0], "xml") {
		c.reply("-ERR event xml is not supported by this node")
		return
	}
	asJSON := false
	if len(args) > 0 {
		switch strings.ToLower(args[0]) {
		case "json":
			asJSON, args = true, args[1:]
		case "plain":
			args = args[1:]
		}
	}
	names, all := eventNames(args)
	if len(names) == 0 && !all {
		c.reply("-ERR no keywords supplied")
		return
	}
	c.mu.Lock()
	c.asJSON = asJSON
	c.all = c.all || all
	for _, n := range names {
		c.names[n] = true
	}
	c.mu.Unlock()
	if asJSON {
		c.reply("+OK event listener enabled json")
		return
	}
	c.reply("+OK event listener enabled plain")
}

// eventNames returns the names that are known; what follows CUSTOM are
// subclasses, which need not be known.
func eventNames(args []string) (names []string, all bool) {
	custom := false
	for _, a := range args {
		up := strings.ToUpper(a)
		switch {
		case up == "ALL":
			all = true
		case custom:
			names = append(names, a)
		case up == "CUSTOM":
			custom = true
			names = append(names, up)
		case knownEvent(up):
			names = append(names, up)
		}
	}
	return names, all
}

// knownEvent says which of FreeSWITCH's event names are accepted; those that
// this node never fires are accepted too.
func knownEvent(name string) bool {
	switch name {
	case "CHANNEL_CREATE", "CHANNEL_DESTROY", "CHANNEL_STATE", "CHANNEL_CALLSTATE", "CHANNEL_ANSWER",
		"CHANNEL_HANGUP", "CHANNEL_HANGUP_COMPLETE", "CHANNEL_EXECUTE", "CHANNEL_EXECUTE_COMPLETE",
		"CHANNEL_HOLD", "CHANNEL_UNHOLD", "CHANNEL_BRIDGE", "CHANNEL_UNBRIDGE", "CHANNEL_PROGRESS",
		"CHANNEL_PROGRESS_MEDIA", "CHANNEL_OUTGOING", "CHANNEL_ORIGINATE", "CHANNEL_PARK", "CHANNEL_UNPARK",
		"CHANNEL_UUID", "CHANNEL_APPLICATION", "CALL_UPDATE", "CODEC", "API", "LOG", "MODULE_LOAD",
		"MODULE_UNLOAD", "RELOADXML", "HEARTBEAT", "SHUTDOWN", "STARTUP", "BACKGROUND_JOB", "RE_SCHEDULE",
		"MESSAGE", "PRESENCE_IN", "DTMF", "RECORD_START", "RECORD_STOP", "PLAYBACK_START", "PLAYBACK_STOP",
		"SESSION_HEARTBEAT", "TRAP", "ADD_SCHEDULE", "DEL_SCHEDULE", "EXE_SCHEDULE", "GENERAL", "COMMAND":
		return true
	}
	return false
}

func (c *client) nix(args []string) {
	names, all := eventNames(args)
	if len(names) == 0 && !all {
		c.reply("-ERR no keywords supplied")
		return
	}
	c.mu.Lock()
	if all {
		c.all = false
		clear(c.names)
	}
	for _, n := range names {
		delete(c.names, n)
	}
	c.mu.Unlock()
	c.reply("+OK events nixed")
}

func (c *client) noEvents() {
	c.mu.Lock()
	on := c.all || len(c.names) > 0
	c.all = false
	clear(c.names)
	c.mu.Unlock()
	if !on {
		c.reply("-ERR not listening for events")
		return
	}
	c.reply("+OK no longer listening for events")
}

// filter is "filter NAME VALUE" and "filter delete NAME [VALUE]".
func (c *client) filter(arg string) {
	name, value, ok := strings.Cut(arg, " ")
	if strings.EqualFold(name, "delete") {
		name, value, _ = strings.Cut(strings.TrimSpace(value), " ")
		c.mu.Lock()
		var keep fields
		for _, f := range c.filters {
			if !strings.EqualFold(name, "all") && (!strings.EqualFold(f.name, name) || (value != "" && f.value != value)) {
				keep = append(keep, f)
			}
		}
		c.filters = keep
		c.mu.Unlock()
		c.reply("+OK filter deleted. [" + name + "][" + value + "]")
		return
	}
	if !ok || name == "" {
		c.reply("-ERR invalid syntax")
		return
	}
	value = strings.TrimSpace(value)
	c.mu.Lock()
	c.filters.add(name, value)
	c.mu.Unlock()
	c.reply("+OK filter added. [" + name + "]=[" + value + "]")
}

// sendEvent fires the client's event for everybody.
func (c *client) sendEvent(name string, cmd command) {
	name = strings.ToUpper(name)
	if name != "CUSTOM" && !knownEvent(name) {
		c.reply("-ERR invalid event")
		return
	}
	id := newUUID()
	rest := cmd.headers.clone(1)
	rest.unset("Content-Length")
	rest.add("Event-UUID", id)
	c.n.hub.fire(name, place{"mod_event_socket.c", "parse_command", "2283"}, rest, cmd.body, nil)
	c.reply("+OK " + id)
}

// bgapi answers with a job and fires BACKGROUND_JOB (capture esl/json-bgapi.txt).
func (c *client) bgapi(line string, headers fields) {
	job, ok := headers.get("Job-UUID")
	if !ok || job == "" {
		job = newUUID()
	}
	c.reply("+OK Job-UUID: "+job, "Job-UUID: "+job)
	name, arg, _ := strings.Cut(line, " ")
	var f fields
	f.add("Job-UUID", job)
	f.add("Job-Command", name)
	if arg != "" {
		f.add("Job-Command-Arg", arg)
	}
	c.n.hub.fire("BACKGROUND_JOB", place{"mod_event_socket.c", "api_exec", "1580"}, f, c.n.api(line), nil)
}
