package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-voip/bulkhead"
	"github.com/bulkhead-voip/bulkhead/configsvc"
)

// signed makes a certificate, signed by another or by itself, and writes
// it and its key into files.
func signed(t *testing.T, name string, by *tls.Certificate) (pair tls.Certificate, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: by == nil, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := c, any(k)
	if by != nil {
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &k.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pair, err = tls.LoadX509KeyPair(cert, key); err != nil {
		t.Fatal(err)
	}
	return pair, cert, key
}

// TestAnswersOverTLS: with --client-ca only a PBX that has a certificate of that
// authority gets as far as asking, and still needs its token.
func TestAnswersOverTLS(t *testing.T) {
	ca, caFile, _ := signed(t, "ca", nil)
	_, cert, key := signed(t, "configsvc", &ca)
	pbx, _, _ := signed(t, "fs1", &ca)
	stranger, _, _ := signed(t, "stranger", nil)
	data := t.TempDir()
	seedTwoCells(t, data)
	var s *configsvc.Server
	r := startService(t, data, func(p *parts, g *group) (err error) {
		if err := p.followStore(g, &storeFlags{}, "configsvc"); err != nil {
			return err
		}
		s, err = startConfigsvc(p, g, listenFlags{Listen: "127.0.0.1:0", TLSCert: cert, TLSKey: key, ClientCA: caFile}, nil)
		return err
	})
	defer r.stop(t)
	node, err := dataDir(data).secret(nodeToken)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	ask := func(scheme, password string, certificates ...tls.Certificate) string {
		t.Helper()
		transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Certificates: certificates}}
		defer transport.CloseIdleConnections()
		body := strings.NewReader("hostname=&section=directory&tag_name=domain&key_name=name&key_value=acme.example&user=101&domain=acme.example")
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, scheme+"://"+s.Addr().String()+"/freeswitch/xml", body)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("fs1", password)
		resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
		if err != nil {
			return "refused"
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return string(text)
	}
	if got := ask("https", node, pbx); !strings.Contains(got, "a1-hash") {
		t.Errorf("certificate and token: %q", got)
	}
	if got := ask("https", "wrong", pbx); !strings.Contains(got, "not found") {
		t.Errorf("a certificate alone: %q", got)
	}
	for what, got := range map[string]string{"no certificate": ask("https", node), "one of another authority": ask("https", node, stranger), "plain HTTP": ask("http", node)} {
		if strings.Contains(got, "a1-hash") {
			t.Errorf("%s: %q", what, got)
		}
	}
	for _, f := range []listenFlags{{TLSCert: cert}, {TLSKey: key}, {ClientCA: caFile}, {TLSCert: cert, TLSKey: key, ClientCA: key}} {
		if _, err := f.config(); !errors.Is(err, bulkhead.Invalid) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if c, err := (&listenFlags{}).config(); c != nil || err != nil {
		t.Errorf("no flags: %v %v", c, err)
	}
}
