package editfile

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func ownerOf(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatalf("nobody tells who owns %s", path)
	}
	return s.Uid, s.Gid
}

// TestOwners: what root adds to the folder of a PBX that runs as a user of its
// own is that user's, and what was there keeps its owner and rights.
func TestOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: only root may give files away")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 1234, 1235); err != nil {
		t.Fatal(err)
	}
	there := filepath.Join(dir, "there.conf")
	if err := os.WriteFile(there, []byte("a"), 0o604); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(there, 7, 8); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(dir, "a", "b")
	for range 2 {
		if err := MakeFolder(below); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{there, filepath.Join(dir, "new.conf"), filepath.Join(below, "new.conf")} {
		for range 2 {
			if err := Replace(file, "text"); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != "text" {
			t.Errorf("%s: %q %v", file, b, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "a"), below, filepath.Join(dir, "new.conf"), filepath.Join(below, "new.conf")} {
		if uid, gid := ownerOf(t, path); uid != 1234 || gid != 1235 {
			t.Errorf("%s is owned by %d:%d", path, uid, gid)
		}
	}
	if uid, gid := ownerOf(t, there); uid != 7 || gid != 8 {
		t.Errorf("a file that was there is owned by %d:%d", uid, gid)
	}
	if info, err := os.Stat(there); err != nil || info.Mode().Perm() != 0o604 {
		t.Errorf("its rights are %v, %v", info.Mode(), err)
	}
}
