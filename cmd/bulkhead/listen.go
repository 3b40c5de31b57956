package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/bulkhead-voip/bulkhead"
)

// listenFlags say where PBXs ask, and who gets as far as asking.
type listenFlags struct {
	Listen   string `help:"Where PBXs ask." default:"127.0.0.1:8080" placeholder:"IP:PORT"`
	TLSCert  string `name:"tls-cert" help:"Answer PBXs over HTTPS: file with the certificate. Needed wherever they are on another host." type:"path" placeholder:"FILE"`
	TLSKey   string `name:"tls-key" help:"With --tls-cert: file with its key." type:"path" placeholder:"FILE"`
	ClientCA string `name:"client-ca" help:"With --tls-cert: file with the certificates that a PBX's own must lead to. It needs its token all the same." type:"path" placeholder:"FILE"`
}

// config returns the listener's TLS; nil: there is none.
func (f *listenFlags) config() (*tls.Config, error) {
	if f.TLSCert == "" && f.TLSKey == "" && f.ClientCA == "" {
		return nil, nil
	}
	if f.TLSCert == "" || f.TLSKey == "" {
		return nil, fmt.Errorf("--tls-cert and --tls-key go together, and --client-ca with both: %w", bulkhead.Invalid)
	}
	pair, err := tls.LoadX509KeyPair(f.TLSCert, f.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("--client-ca: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("--client-ca: %s holds no certificate: %w", f.ClientCA, bulkhead.Invalid)
	}
	return c, nil
}
