package testenv

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func ask(t *testing.T, s *ClickHouseServer, query string) string {
	t.Helper()
	res, err := http.Post("http://"+s.HTTP+"/", "text/plain", strings.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(body))
}

// TestClickHouseKeepsItsData: what was inserted before a SIGKILL is there when
// the server is started again, at the same addresses.
func TestClickHouseKeepsItsData(t *testing.T) {
	s := ClickHouse(t)
	ask(t, s, "CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a SETTINGS fsync_after_insert = 1")
	if out := ask(t, s, "INSERT INTO t SELECT number FROM numbers(1000)"); out != "" {
		t.Fatal(out)
	}
	s.Kill()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, s, "SELECT count() FROM t"); got != "1000" {
		t.Errorf("after a kill: %s rows, want 1000", got)
	}
	t.Log("ClickHouse", ask(t, s, "SELECT version()"))
}
