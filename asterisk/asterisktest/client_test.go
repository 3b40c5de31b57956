package asterisktest_test

import (
	"testing"
	"time"

	"github.com/CyCoreSystems/ari/v5"
	"github.com/CyCoreSystems/ari/v5/client/native"

	"github.com/bulkhead-voip/bulkhead/asterisk/asterisktest"
)

// TestForeignClient: a client that is not ours understands the server's REST
// interface as it understands an Asterisk's. Its WebSocket is left out: it
// races with itself.
func TestForeignClient(t *testing.T) {
	server := serve(t, asterisktest.ServerConfig{})
	cfg := server.Config()
	client := native.New(&native.Options{Application: "foreign", URL: cfg.ARI.URL, Username: cfg.ARI.User, Password: cfg.ARI.Password})
	if info, err := client.Asterisk().Info(nil); err != nil || info.SystemInfo.Version != "22.10.1" || info.StatusInfo.StartupTime == (ari.DateTime{}) {
		t.Fatalf("info %+v, %v", info, err)
	}
	generated := make(chan error, 1)
	go func() {
		generated <- server.Generate(t.Context(), asterisktest.Load{Calls: 20, Ring: time.Second, Talk: 2 * time.Second, Seed: 1})
	}()
	until(t, "channels", func() bool { return len(server.Live()) > 4 })
	list, err := client.Channel().List(nil)
	if err != nil || len(list) < 2 {
		t.Fatalf("%d channels, %v", len(list), err)
	}
	for _, key := range list {
		if answered, err := client.Channel().GetVariable(key, "CDR(answer,u)"); err == nil && answered != "" {
			if _, err := time.ParseDuration(answered + "s"); err != nil {
				t.Errorf("channel %s was answered at %q", key.ID, answered)
			}
		}
	}
	if err := <-generated; err != nil {
		t.Fatal(err)
	}
}
