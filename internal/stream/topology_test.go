package stream

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/bulkhead-voip/bulkhead/internal/testenv"
)

// port returns a loopback port that was free a moment ago.
func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}

// TestCluster runs against a cluster of one node: there too a script whose
// keys lie in different slots is refused.
func TestCluster(t *testing.T) {
	p := port(t)
	r := testenv.StartRedis(t, "--port", p, "--bind", "127.0.0.1", "--cluster-enabled", "yes", "--cluster-port", port(t), "--cluster-announce-ip", "127.0.0.1")
	admin := client(t, Options{Addrs: []string{r.Socket}})
	do(t, func() error { return admin.ClusterAddSlotsRange(t.Context(), 0, 16383).Err() })
	until(t, "the cluster", func() string {
		info, err := admin.ClusterInfo(t.Context()).Result()
		if err != nil || !strings.Contains(info, "cluster_state:ok") {
			return fmt.Sprint(info, err)
		}
		return ""
	})
	c := client(t, Options{Addrs: []string{"127.0.0.1:" + p}, Cluster: true})
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	read(t, c, "main", "a", 70, s, nil)
	w.append(500)
	w.arrived(s)
	trimmed(t, c)
}

// TestSentinel kills the master in mid-stream; a sentinel promotes its
// replica, which may lack what was last written.
func TestSentinel(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	const password = "correct horse"
	ports := []string{port(t), port(t), port(t)}
	auth := []string{"--bind", "127.0.0.1", "--requirepass", password, "--masterauth", password}
	master := testenv.StartRedis(t, append(auth, "--port", ports[0])...)
	testenv.StartRedis(t, append(auth, "--port", ports[1], "--replicaof", "127.0.0.1 "+ports[0])...)
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "sentinel monitor m 127.0.0.1 %s 1\nsentinel auth-pass m \"%s\"\nsentinel down-after-milliseconds m 500\nsentinel failover-timeout m 3000\n", ports[0], password), 0o600); err != nil {
		t.Fatal(err)
	}
	testenv.StartSentinel(t, conf, "--port", ports[2], "--bind", "127.0.0.1")
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: "127.0.0.1:" + ports[2]})
	t.Cleanup(func() { sentinel.Close() })
	until(t, "the sentinel to know the replica", func() string {
		replicas, err := sentinel.Replicas(t.Context(), "m").Result()
		if err != nil || len(replicas) != 1 || replicas[0]["master-link-status"] != "ok" {
			return fmt.Sprint(replicas, err)
		}
		return ""
	})
	c := client(t, Options{Addrs: []string{"127.0.0.1:" + ports[2]}, MasterName: "m", Password: password})
	w, s := newWriter(t, c, "w1"), newStore()
	w.start()
	read(t, c, "main", "a", 30, s, nil)
	w.feed(40, func(i int) {
		if i == 20 {
			master.Kill()
		}
	})
	w.arrived(s)
	trimmed(t, c)
}
