//go:build !minimal

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

var corefileBlock = regexp.MustCompile("(?s)~~~ corefile\n(.*?)~~~")

// Every Corefile in a manual page of ours is started, as it is but for the port, the files it names and
// the resolvers of this machine.
func TestManualPages(t *testing.T) {
	pages, err := filepath.Glob("../plugin/*/README.md")
	if err != nil || len(pages) < 2 {
		t.Fatalf("found %q, %v", pages, err)
	}
	for _, page := range pages {
		blocks := corefileBlock.FindAllStringSubmatch(read(t, page), -1)
		if len(blocks) == 0 {
			t.Errorf("%s has no Corefile", page)
		}
		for i, b := range blocks {
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(filepath.Dir(page)), i+1), func(t *testing.T) { startsAsWritten(t, b[1]) })
		}
	}
}

func startsAsWritten(t *testing.T, text string) {
	work := t.TempDir()
	kubeconfig := filepath.Join(work, "admin.conf")
	write(t, kubeconfig, fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:%d"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`, freePort(t)))
	if err := os.Mkdir(filepath.Join(work, "examples"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(work, "examples", "all.yaml"), manifests)
	for old, new := range map[string]string{
		"/etc/kubernetes/admin.conf":   kubeconfig + "\n        startup_timeout 10ms",
		"manifests examples":           "manifests " + filepath.Join(work, "examples"),
		"forward . /etc/resolv.conf":   "forward . " + outside(t),
		"health\n":                     fmt.Sprintf("health 127.0.0.1:%d\n", freePort(t)),
		"pods insecure\n        fallt": "kubeconfig " + kubeconfig + "\n        startup_timeout 10ms\n        pods insecure\n        fallt", // in a pod
	} {
		text = strings.ReplaceAll(text, old, new)
	}
	corefile := filepath.Join(work, "Corefile")
	write(t, corefile, text)
	port := freePort(t)
	p := startOn(t, corefile, port)
	zone := "cluster.local."
	m, err := p.ask("tcp", "dns-version."+zone, dns.TypeTXT)
	if err != nil || short(m) != `NOERROR "1.1.0"` {
		t.Errorf("dns-version: %v %v", m, err)
	}
}
