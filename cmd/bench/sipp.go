package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// sippRefused places calls that are answered with 404. The ACK has the branch
// of its INVITE (RFC 3261 section 17.1.1.3), by which Kamailio knows it.
const sippRefused = `<?xml version="1.0" encoding="ISO-8859-1"?>
<scenario name="refused">
  <send retrans="500"><![CDATA[
` + sippInvite + `
  ]]></send>
  <recv response="100" optional="true"/>
  <recv response="404"/>
  <send><![CDATA[

ACK sip:493012345@[field1] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch-3]
From: <sip:4930987@carrier.example>;tag=[call_number]
[last_To:]
Call-ID: [call_id]
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

  ]]></send>
</scenario>
`

// sippAnswered places calls that are answered, and hangs up at once.
const sippAnswered = `<?xml version="1.0" encoding="ISO-8859-1"?>
<scenario name="answered">
  <send retrans="500"><![CDATA[
` + sippInvite + `
  ]]></send>
  <recv response="100" optional="true"/>
  <recv response="180" optional="true"/>
  <recv response="200" rrs="true"/>
  <send><![CDATA[

ACK [next_url] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
[routes]
From: <sip:4930987@carrier.example>;tag=[call_number]
[last_To:]
Call-ID: [call_id]
CSeq: 1 ACK
Max-Forwards: 70
Content-Length: 0

  ]]></send>
  <send retrans="500"><![CDATA[

BYE [next_url] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
[routes]
From: <sip:4930987@carrier.example>;tag=[call_number]
[last_To:]
Call-ID: [call_id]
CSeq: 2 BYE
Max-Forwards: 70
Content-Length: 0

  ]]></send>
  <recv response="200"/>
</scenario>
`

const sippInvite = `
INVITE sip:493012345@[field1] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
From: <sip:4930987@carrier.example>;tag=[call_number]
To: <sip:493012345@[field1]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:4930987@[local_ip]:[local_port]>
Max-Forwards: 70
User-Agent: carrier
Allow: INVITE, ACK, CANCEL, BYE, OPTIONS
Content-Type: application/sdp
Content-Length: [len]

v=0
o=- 1 1 IN IP4 [local_ip]
s=-
c=IN IP4 [local_ip]
t=0 0
m=audio 40000 RTP/AVP 8 0 101
a=rtpmap:8 PCMA/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:101 telephone-event/8000
a=sendrecv`

// sippNode answers calls.
const sippNode = `<?xml version="1.0" encoding="ISO-8859-1"?>
<scenario name="node">
  <recv request="INVITE" crlf="true"/>
  <send><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_Record-Route:]
[last_From:]
[last_To:];tag=[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port]>
Content-Length: 0

  ]]></send>
  <recv request="ACK" optional="true"/>
  <recv request="BYE"/>
  <send><![CDATA[

SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:]
[last_Call-ID:]
[last_CSeq:]
Content-Length: 0

  ]]></send>
</scenario>
`

// sippCallers is from how many addresses, each a tenant's, one run calls.
const sippCallers = 4000

// sippLoad is sippRun, slower and slower if the machine is too busy to do it
// without retransmissions: what an INVITE costs does not depend on the rate.
func sippLoad(ctx context.Context, s *sbc, scenario string, n, calls, rate int) (us float64, err error) {
	for range 4 {
		if us, err = sippRun(ctx, s, scenario, n, calls, rate); err == nil || ctx.Err() != nil {
			return us, err
		}
		rate = max(1, rate/2)
	}
	return 0, err
}

// sippRun places calls calls of tenants drawn from n at random, and returns
// what each INVITE cost the SBC's workers, in microseconds. Calls that fail
// are an error, and so are retransmissions: some may still wait at the end.
func sippRun(ctx context.Context, s *sbc, scenario string, n, calls, rate int) (float64, error) {
	dir, err := os.MkdirTemp("", "bhs")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a folder for temporary files
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "call.xml"), []byte(scenario), 0o600), writeCallers(filepath.Join(dir, "callers.csv"), n)); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(calls/rate+20)*time.Second)
	defer cancel()
	before, err := s.cpu()
	if err != nil {
		return 0, err
	}
	// A socket for each caller: more than many shells allow.
	cmd := exec.Command("sh", "-c", `ulimit -n 10240; exec sipp "$@"`, "sh", s.addr, "-sf", "call.xml", "-inf", "callers.csv", "-t", "ui", "-m", strconv.Itoa(calls), "-r", strconv.Itoa(rate),
		"-l", "2000", "-max_socket", "8000", "-nostdin", "-trace_stat", "-stf", "stat.csv", "-fd", "1h", "-trace_err", "-error_file", "errors.log", "-timeout", "40s", "-timeout_error")
	cmd.Dir = dir
	if err := runChild(ctx, cmd); err != nil {
		why, _ := os.ReadFile(filepath.Join(dir, "errors.log")) // only for the message
		return 0, fmt.Errorf("sipp: %w: %s", err, why[:min(len(why), 1500)])
	}
	after, err := s.cpu()
	if err != nil {
		return 0, err
	}
	stat, err := sippStat(filepath.Join(dir, "stat.csv"))
	if err != nil {
		return 0, err
	}
	again := stat["Retransmissions(C)"]
	if stat["SuccessfulCall(C)"] != calls || again > max(1, calls/200) {
		return 0, fmt.Errorf("sipp: of %d calls %d succeeded, with %d retransmissions", calls, stat["SuccessfulCall(C)"], again)
	}
	return float64((after - before).Nanoseconds()) / 1e3 / float64(calls), nil
}

// writeCallers writes the addresses and domains that the calls come from.
func writeCallers(path string, n int) error {
	var b bytes.Buffer
	b.WriteString("RANDOM\n")
	for _, i := range rand.Perm(n)[:min(n, sippCallers)] {
		fmt.Fprintf(&b, "%s;%s\n", sbcSource(i), tenantDomain(i))
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

// sippStat reads the whole numbers of the last line of SIPp's statistics.
func sippStat(path string) (map[string]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := csv.NewReader(bytes.NewReader(b))
	r.Comma, r.FieldsPerRecord = ';', -1
	lines, err := r.ReadAll()
	if err != nil || len(lines) < 2 {
		return nil, fmt.Errorf("statistics of sipp: %d lines, %w", len(lines), err)
	}
	out := map[string]int{}
	for i, name := range lines[0] {
		if i < len(lines[len(lines)-1]) {
			if v, err := strconv.Atoi(lines[len(lines)-1][i]); err == nil {
				out[name] = v
			}
		}
	}
	return out, nil
}

// startNode runs a SIPp that answers at target until ctx ends.
func startNode(ctx context.Context, target string) error {
	dir, err := os.MkdirTemp("", "bhs")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "node.xml"), []byte(sippNode), 0o600); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	cmd := exec.Command("sipp", "-sf", "node.xml", "-i", host, "-p", port, "-nostdin")
	cmd.Dir = dir
	sipp, err := startChild(cmd)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() {
		sipp.kill()
		_ = os.RemoveAll(dir)
	})
	for ctx.Err() == nil {
		if b, _ := os.ReadFile("/proc/net/udp"); strings.Contains(string(b), fmt.Sprintf("0100007F:%04X", mustAtoi(port))) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ctx.Err()
}

func mustAtoi(s string) int {
	n, _ := strconv.Atoi(s) // of an address that the system gave
	return n
}
