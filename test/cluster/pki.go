package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"time"
)

// authority signs everything in one cluster. It is made anew with each.
type authority struct {
	o    *options
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// identity is who a certificate speaks for: a client by name and groups, a server by names and addresses.
type identity struct {
	file   string // in the folder pki, with .crt and .key
	name   string
	groups []string
	dns    []string
	ips    []netip.Addr
}

// writeCredentials makes the authority, every certificate, and a kubeconfig for every client.
func writeCredentials(o *options) error {
	if err := os.MkdirAll(o.path("pki"), 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(o, "ca")
	if err != nil {
		return fmt.Errorf("make the certificate authority: %w", err)
	}
	sa, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := writeKey(o.pki("sa.key"), sa); err != nil {
		return err
	}
	for _, id := range o.identities() {
		if err := ca.issue(id); err != nil {
			return fmt.Errorf("issue the certificate %s: %w", id.file, err)
		}
		if id.dns == nil {
			if err := ca.kubeconfig(id); err != nil {
				return fmt.Errorf("write the kubeconfig of %s: %w", id.name, err)
			}
		}
	}
	return nil
}

func (o *options) identities() []identity {
	server := identity{file: "apiserver", name: "kube-apiserver", dns: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
	}, ips: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}}
	for _, f := range o.families() {
		server.ips = append(server.ips, f.control, f.services.Addr().Next()) // the second is the service `kubernetes`
	}
	out := []identity{
		server,
		{file: "admin", name: "admin", groups: []string{"system:masters"}},
		{file: "apiserver-kubelet", name: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}},
		{file: "front-proxy", name: "front-proxy-client"},
		{file: "controller-manager", name: "system:kube-controller-manager"},
		{file: "scheduler", name: "system:kube-scheduler"},
		{file: "kube-proxy", name: "system:kube-proxy"},
	}
	for i := 1; i <= o.Nodes; i++ {
		name, serving := nodeName(i), identity{file: nodeName(i) + "-serving", name: "system:node:" + nodeName(i), groups: []string{"system:nodes"}}
		serving.dns = []string{name}
		for _, f := range o.families() {
			serving.ips = append(serving.ips, f.node(i))
		}
		out = append(out, serving, identity{file: name, name: "system:node:" + name, groups: []string{"system:nodes"}})
	}
	return out
}

func newAuthority(o *options, file string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := template("braid-cluster " + o.Name)
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{o: o, cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if err := writeKey(o.pki(file+".key"), key); err != nil {
		return nil, err
	}
	return a, os.WriteFile(o.pki(file+".crt"), a.pem, 0o644)
}

// template returns a certificate that is valid from an hour ago, for clocks that were set back, and for a year.
func template(name string) *x509.Certificate {
	// An error of the random source stops the program by itself (crypto/rand, since Go 1.24).
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
}

func (a *authority) issue(id identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := template(id.name)
	tmpl.Subject.Organization, tmpl.DNSNames, tmpl.KeyUsage = id.groups, id.dns, x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if id.dns != nil {
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, ip := range id.ips {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IP(ip.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	if err := writeKey(a.o.pki(id.file+".key"), key); err != nil {
		return err
	}
	return os.WriteFile(a.o.pki(id.file+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// writeKey writes SEC 1, the one form that the API server also takes for service accounts' tokens.
func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// kubeconfig writes pki/<file>.kubeconfig with the credentials inside, so that it can be copied anywhere.
func (a *authority) kubeconfig(id identity) error {
	cert, err := os.ReadFile(a.o.pki(id.file + ".crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(a.o.pki(id.file + ".key"))
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: %[1]s, cluster: {server: "%[2]s", certificate-authority-data: %[3]s}}]
users: [{name: %[4]q, user: {client-certificate-data: %[5]s, client-key-data: %[6]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[4]q}}]
current-context: %[1]s
`, a.o.Name, a.o.server(), b64(a.pem), id.name, b64(cert), b64(key))
	path := a.o.pki(id.file + ".kubeconfig")
	if id.file == "admin" {
		path = a.o.kubeconfig()
	}
	return os.WriteFile(path, []byte(text), 0o600)
}

// server is the URL of the API server in the primary family.
func (o *options) server() string {
	return "https://" + netip.AddrPortFrom(o.families()[0].control, apiPort).String()
}
