package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// dataDir is the folder that holds everything Bulkhead keeps on a host.
type dataDir string

func (d dataDir) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}

func (d dataDir) registry() string { return d.path("registry.db") }
func (d dataDir) cdrs() string     { return d.path("cdr.db") }
func (d dataDir) spool() string    { return d.path("spool") }
func (d dataDir) journal() string  { return d.path("journal") }
func (d dataDir) shadow() string   { return d.path("shadow") }

// open makes the folder if it is not there.
func (d dataDir) open() error {
	if err := os.MkdirAll(string(d), 0o750); err != nil {
		return fmt.Errorf("data folder %s: %w", d, err)
	}
	return nil
}

// The secrets of an installation, one file each below secrets/.
const (
	nodeToken  = "node.token"   // HTTP Basic password of media nodes
	sbcToken   = "sbc.token"    // HTTP Basic password of SBCs that post events
	adminToken = "admin.token"  // bearer token of the admin API
	eslSecret  = "esl.password" // password of the media nodes' event sockets
)

// secret reads a secret; the first use makes a random one that only its owner
// can read.
func (d dataDir) secret(name string) (string, error) {
	file := d.path("secrets", name)
	b, err := os.ReadFile(file)
	if err == nil {
		s := strings.TrimSpace(string(b))
		if s == "" {
			return "", fmt.Errorf("secret %s is empty: write one into it, or delete the file to get a new one", file)
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read secret: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", fmt.Errorf("make folder for secret: %w", err)
	}
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("make secret %s: %w", name, err)
	}
	made := hex.EncodeToString(random)
	temp, err := os.CreateTemp(filepath.Dir(file), ".new-*") // for its owner alone
	if err != nil {
		return "", fmt.Errorf("make secret: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = fmt.Fprintln(temp, made)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return "", fmt.Errorf("write secret %s: %w", file, err)
	}
	// Of several processes that start at once, the first one's secret stays.
	if err := os.Link(temp.Name(), file); errors.Is(err, fs.ErrExist) {
		return d.secret(name)
	} else if err != nil {
		return "", fmt.Errorf("write secret %s: %w", file, err)
	}
	return made, nil
}
