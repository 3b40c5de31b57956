// Package editfile changes files that somebody else wrote, such as those of a
// PBX that is attached.
package editfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Replace writes a file whole or not at all, with the rights and owner that it
// had. A new one can be read by its owner and group, which are its folder's: a
// PBX that runs as a user of its own has to read what root wrote.
func Replace(file, text string) error {
	mode := fs.FileMode(0o640)
	info, err := os.Stat(file)
	if err == nil {
		mode = info.Mode().Perm()
	} else if info, err = os.Stat(filepath.Dir(file)); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	temp, err := os.CreateTemp(filepath.Dir(file), ".bulkhead-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.WriteString(text)
	if err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	own(temp.Name(), info)
	if err := os.Rename(temp.Name(), file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

// MakeFolder makes a folder and those above it, for the owner and group of the
// one that was there.
func MakeFolder(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(dir)
	if err := MakeFolder(above); err != nil {
		return err
	}
	info, err := os.Stat(above)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		return err
	}
	own(dir, info)
	return nil
}

// own gives a file the owner of another, as far as one may.
func own(file string, of fs.FileInfo) {
	if s, ok := of.Sys().(*syscall.Stat_t); ok {
		_ = os.Chown(file, int(s.Uid), int(s.Gid)) // only root may
	}
}
