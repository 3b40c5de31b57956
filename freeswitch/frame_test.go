package freeswitch

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/bulkhead-voip/bulkhead"
)

var inserted = regexp.MustCompile(`>>> CLIENT SENDS: [^\n]*\n|<<< EOF from server\n?`)

// stream returns what a captured server sent, without the lines that the
// capture inserted.
func stream(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "esl", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	return inserted.ReplaceAll(b, nil)
}

func streams(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/esl/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".txt")
	}
	return files
}

func readAll(b []byte) ([]frame, error) {
	r := newFrameReader(bytes.NewReader(b))
	var out []frame
	for {
		fr, err := r.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, fr)
	}
}

func TestFramesOfCaptures(t *testing.T) {
	want := map[string]int{
		"api-during-bridge": 6, "array-and-odd-values-json": 4, "array-and-odd-values-plain": 4, "auth-wrong": 3,
		"before-auth": 3, "commands": 26, "heartbeat-during-calls": 6, "json-bgapi": 14, "json-bridge": 19,
		"json-bridge-busy": 12, "non-utf8-caller-name-json": 4, "plain-calls": 16, "register-events": 9, "shutdown": 7,
	}
	for _, name := range streams(t) {
		frames, err := readAll(stream(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(frames) != want[name] {
			t.Errorf("%s: %d frames, want %d", name, len(frames), want[name])
		}
		for i, fr := range frames {
			if fr.contentType == "" {
				t.Errorf("%s: frame %d has no type", name, i)
			}
		}
	}
}

func TestFrameOddities(t *testing.T) {
	tests := []struct {
		name, in string
		want     []frame
		err      error
	}{
		{"empty", "", nil, nil},
		{"unknown type", "Content-Type: log/data\nContent-Length: 2\nLog-Level: 7\n\nhi", []frame{{contentType: "log/data", body: []byte("hi")}}, nil},
		{"empty reply", "Content-Type: command/reply\nReply-Text:\n\n", []frame{{contentType: "command/reply"}}, nil},
		{"no headers that matter", "x\n\n", []frame{{}}, nil},
		{"carriage returns", "Content-Type: command/reply\r\nReply-Text: +OK\r\n\r\n", []frame{{contentType: "command/reply", reply: "+OK"}}, nil},
		{"blank lines between frames", "\n\nContent-Type: auth/request\n\n", []frame{{contentType: "auth/request"}}, nil},
		// The server's own words when it gives up on a client (captures: client-that-does-not-read).
		{"notice within a frame", "Content-Length: 569\nContent-Type: text/event-plain\nContent-Type: text/disconnect-notice\nContent-Length: 39\n\nkilled listener because of lost events\n",
			[]frame{{contentType: "text/disconnect-notice", body: []byte("killed listener because of lost events\n")}}, nil},
		{"negative length", "Content-Length: -5\n\n", nil, bulkhead.Invalid},
		{"huge length", "Content-Length: 99999999999999999999\n\n", nil, bulkhead.Invalid},
		{"17 MiB", "Content-Length: 17825792\n\n", nil, bulkhead.Invalid},
		{"garbage length", "Content-Length: 0x10\n\n", nil, bulkhead.Invalid},
		{"no length", "Content-Length: \n\n", nil, bulkhead.Invalid},
		{"cut in a header", "Content-Type: a", nil, io.ErrUnexpectedEOF},
		{"cut between headers", "Content-Type: a\n", nil, io.ErrUnexpectedEOF},
		{"cut in the body", "Content-Length: 16777216\n\nabc", nil, io.ErrUnexpectedEOF},
		{"endless line", strings.Repeat("a", maxFrameHeader+1), nil, bulkhead.Invalid},
		{"endless headers", strings.Repeat("A: b\n", maxFrameHeader/5+1) + "\n", nil, bulkhead.Invalid},
		{"endless blank lines", strings.Repeat("\n", maxFrameHeader+1), nil, bulkhead.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll([]byte(tt.in))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("%d frames, want %d", len(got), len(tt.want))
			}
			for i := range got {
				if got[i].contentType != tt.want[i].contentType || got[i].reply != tt.want[i].reply || !bytes.Equal(got[i].body, tt.want[i].body) {
					t.Errorf("frame %d: %+v, want %+v", i, got[i], tt.want[i])
				}
			}
		})
	}
}

func FuzzFrameReader(f *testing.F) {
	for _, name := range streams(f) {
		b := stream(f, name)
		f.Add(b[:min(len(b), 4<<10)]) // the fuzzer is slow with long seeds
	}
	f.Add([]byte("Content-Length: -5\n\n"))
	f.Add([]byte("Content-Length: 569\nContent-Type: text/event-plain\nContent-Type: text/disconnect-notice\nContent-Length: 39\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, _ := readAll(b)
		total := 0
		for _, fr := range frames {
			total += len(fr.body) + len(fr.reply) + len(fr.contentType)
		}
		if total > len(b) {
			t.Fatalf("%d bytes came out of %d", total, len(b))
		}
		for _, fr := range frames {
			_, _ = DecodeJSON(fr.body)
			_, _ = DecodePlain(fr.body)
			_, _, _ = origin{}.decodeChannels(fr.body)
		}
	})
}
