package asterisktest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"
)

// channelObject is a channel as ARI shows it (captures ari-01, ari-11).
type channelObject struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	State      string            `json:"state"`
	ProtocolID string            `json:"protocol_id"`
	Caller     partyObject       `json:"caller"`
	Connected  partyObject       `json:"connected"`
	Account    string            `json:"accountcode"`
	Dialplan   dialplanObject    `json:"dialplan"`
	Created    string            `json:"creationtime"`
	Language   string            `json:"language"`
	Vars       map[string]string `json:"channelvars"`
}

type partyObject struct {
	Name   string `json:"name"`
	Number string `json:"number"`
}

type dialplanObject struct {
	Context  string `json:"context"`
	Exten    string `json:"exten"`
	Priority int    `json:"priority"`
	App      string `json:"app_name"`
	AppData  string `json:"app_data"`
}

// eventObject is an event. Its fields are those of the types that the fake sends.
type eventObject struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`

	Cause     *int   `json:"cause,omitempty"`
	CauseText string `json:"cause_txt,omitempty"`
	TechCause int    `json:"tech_cause,omitempty"`
	Soft      bool   `json:"soft,omitempty"`

	DialStatus *string        `json:"dialstatus,omitempty"`
	Forward    *string        `json:"forward,omitempty"`
	DialString *string        `json:"dialstring,omitempty"`
	Caller     *channelObject `json:"caller,omitempty"`
	Peer       *channelObject `json:"peer,omitempty"`

	Channel *channelObject `json:"channel,omitempty"`

	AsteriskID  string `json:"asterisk_id"`
	Application string `json:"application"`
}

// stamp writes a time as ARI does: milliseconds, and the zone's offset.
func stamp(t time.Time) string { return t.Format("2006-01-02T15:04:05.000-0700") }

// copyOf is a channel as it is now.
func copyOf(c *channelObject) *channelObject {
	o := *c
	o.Vars = maps.Clone(c.Vars)
	return &o
}

func encode(v any) []byte {
	b, _ := json.Marshal(v) // plain fields always marshal
	return b
}

// cdrRow is what a Cdr event of AMI says (captures ami-01 to ami-09).
type cdrRow struct {
	account, source, destination, context string
	channel, peer, lastApp, lastData      string
	start, answer, end                    time.Time
	disposition, uniqueID, linkedID       string
	sequence                              int64
	tenant                                string
}

// write prints the row with times of the zone, in whole seconds, as cdr_manager does.
func (r *cdrRow) write(b *strings.Builder, sent time.Time, zone *time.Location) {
	print := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.In(zone).Format("2006-01-02 15:04:05")
	}
	billed := time.Duration(0)
	if !r.answer.IsZero() {
		billed = r.end.Sub(r.answer)
	}
	peerAccount := ""
	if r.peer != "" {
		peerAccount = r.account
	}
	for _, line := range [][2]string{
		{"Event", "Cdr"}, {"Privilege", "cdr,all"},
		{"Timestamp", fmt.Sprintf("%d.%06d", sent.Unix(), sent.Nanosecond()/1000)},
		{"AccountCode", r.account}, {"Source", r.source}, {"Destination", r.destination}, {"DestinationContext", r.context},
		{"CallerID", `"" <` + r.source + ">"}, {"Channel", r.channel}, {"DestinationChannel", r.peer},
		{"LastApplication", r.lastApp}, {"LastData", r.lastData},
		{"StartTime", print(r.start)}, {"AnswerTime", print(r.answer)}, {"EndTime", print(r.end)},
		{"Duration", fmt.Sprint(int(r.end.Sub(r.start).Seconds()))}, {"BillableSeconds", fmt.Sprint(int(billed.Seconds()))},
		{"Disposition", r.disposition}, {"AMAFlags", "DOCUMENTATION"}, {"UniqueID", r.uniqueID}, {"UserField", ""},
		{"LinkedID", r.linkedID}, {"Sequence", fmt.Sprint(r.sequence)}, {"PeerAccount", peerAccount}, {"Tenant", r.tenant},
	} {
		b.WriteString(line[0])
		b.WriteString(": ")
		b.WriteString(line[1])
		b.WriteString("\r\n")
	}
	b.WriteString("\r\n")
}
