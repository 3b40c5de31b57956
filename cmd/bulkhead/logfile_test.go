package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.log")
	line := strings.Repeat("x", 99) + "\n"
	for range 3 { // three runs
		l, err := openLogFile(path, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for range 25 {
			if _, err := l.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]int64{path: 500, path + ".1": 1000} {
		if st, err := os.Stat(file); err != nil || st.Size() != want {
			t.Errorf("%s: %v, %v, want %d bytes", file, st, err, want)
		}
	}
	if all, err := filepath.Glob(path + "*"); err != nil || len(all) != 2 {
		t.Errorf("there are %v, %v", all, err)
	}
}
