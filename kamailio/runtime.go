package kamailio

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/bulkhead-voip/bulkhead"
)

const (
	// runtimeRecord is the file that says where the sockets are, if not beside it.
	runtimeRecord = "rpc.path"
	// rpcRecord is the file that names Kamailio's socket, if an operator chose it.
	rpcRecord = "rpc.socket"
)

const (
	// maxSocketPath is the longest path of a unix socket (sun_path of unix(7),
	// less the final zero).
	maxSocketPath = 107
	// socketRoom is for the name of a socket in its folder: a client's is the
	// longest.
	socketRoom = 34
)

// socketDir returns the folder of the sockets of the Kamailio in dir: dir
// itself, or, when its path is too long for a socket or has a space in it, a
// short one that belongs to dir alone.
func socketDir(dir string) (string, error) {
	if len(dir)+socketRoom <= maxSocketPath && !strings.Contains(dir, " ") {
		return dir, nil
	}
	sum := sha256.Sum256([]byte(dir))
	short := filepath.Join(os.TempDir(), fmt.Sprintf("bulkhead-%x", sum[:8]))
	if len(short)+socketRoom > maxSocketPath || strings.Contains(short, " ") || !pathForm.MatchString(short) {
		return "", fmt.Errorf("the path %q is too long for the sockets of kamailio, and so is %q: choose a shorter folder, or set TMPDIR to a short one: %w", dir, short, bulkhead.Invalid)
	}
	return short, nil
}

// writeRuntime makes the folder of the sockets, and says in dir where it is: a
// dispatcher may have another TMPDIR. rpc is Kamailio's socket, if it is not there.
func writeRuntime(dir, rpc string) error {
	if rpc == "" {
		if err := os.Remove(filepath.Join(dir, rpcRecord)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write the files of an SBC: %w", err)
		}
	} else if err := writeFile(filepath.Join(dir, rpcRecord), []byte(rpc+"\n")); err != nil {
		return err
	}
	sockets, err := socketDir(dir)
	if err != nil {
		return err
	}
	record := filepath.Join(dir, runtimeRecord)
	if sockets == dir {
		if err := os.Remove(record); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write the files of an SBC: %w", err)
		}
		return nil
	}
	if err := claimRuntime(sockets); err != nil {
		return err
	}
	return writeFile(record, []byte(sockets+"\n"))
}

// runtimeOf returns the folder of the sockets of the Kamailio in dir, and
// makes it again if somebody has tidied it away.
func runtimeOf(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, runtimeRecord))
	if errors.Is(err, fs.ErrNotExist) {
		return dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("find the sockets of the Kamailio in %s: %w", dir, err)
	}
	sockets := strings.TrimSpace(string(b))
	return sockets, claimRuntime(sockets)
}

// rpcOf returns the socket of the Kamailio whose files are in dir.
func rpcOf(dir, sockets string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, rpcRecord))
	if errors.Is(err, fs.ErrNotExist) {
		return filepath.Join(sockets, SocketFile), nil
	}
	if err != nil {
		return "", fmt.Errorf("find the socket of the Kamailio in %s: %w", dir, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// claimRuntime makes a folder that nobody else can enter, or checks that the
// one that is there is such: its parent is open to everybody.
func claimRuntime(path string) error {
	err := os.Mkdir(path, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the folder for kamailio's sockets: %w", err)
	}
	st, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("make the folder for kamailio's sockets: %w", err)
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(owner.Uid) != os.Geteuid() || st.Mode().Perm() != 0o700 {
		return fmt.Errorf("%s, the folder for kamailio's sockets, is not a folder of our own with mode 0700: remove it, or set TMPDIR to another folder and write the configuration again: %w", path, bulkhead.Conflict)
	}
	return nil
}
