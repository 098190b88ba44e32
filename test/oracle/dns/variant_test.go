package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// variant is one server block: options of the kubernetes plugin and what is around it.
type variant struct {
	name     string
	zones    []string // forward zones, with a dot at the end
	reverse  string   // further zones of the plugin
	options  []string
	behind   bool // a zone file answers what falls through
	wide     bool // listens on every address, and so is a name server with addresses
	noSlices bool // does not read endpoints
	verified bool // reads pods
	external bool // has k8s_external for externalZone and externalReverse

	stock, ours string // addresses
}

// generations bounds how many clusters one run can have: their sync namespaces are named in a Corefile.
const generations = 64

func variants() []*variant {
	cluster, reverse := []string{"cluster.local."}, "in-addr.arpa ip6.arpa"
	var syncs strings.Builder
	for g := range generations {
		fmt.Fprintf(&syncs, " sync-%d", g)
	}
	return []*variant{
		{name: "plain", zones: cluster, reverse: reverse},
		{name: "kubeadm", zones: cluster, reverse: reverse, options: []string{"pods insecure", "fallthrough in-addr.arpa ip6.arpa", "ttl 30"}, wide: true, behind: true},
		{name: "verified", zones: cluster, reverse: reverse, options: []string{"pods verified"}, verified: true},
		{name: "pod-names", zones: cluster, reverse: reverse, options: []string{"endpoint_pod_names", "pods insecure", "ttl 3600"}, wide: true},
		{name: "no-empty", zones: cluster, reverse: reverse, options: []string{"ignore empty_service", "ttl 0"}},
		{name: "two-namespaces", zones: cluster, reverse: reverse, options: []string{"namespaces prod hand", "namespaces" + syncs.String(), "pods insecure"}},
		{name: "noendpoints", zones: cluster, reverse: reverse, options: []string{"noendpoints", "ttl 301"}, noSlices: true, wide: true},
		{name: "fallthrough", zones: cluster, reverse: reverse, options: []string{"fallthrough", "pods verified"}, behind: true, verified: true},
		{name: "fallthrough-part", zones: cluster, reverse: reverse, options: []string{"fallthrough prod.svc.cluster.local hand.svc.cluster.local"}, behind: true},
		{name: "zones", zones: []string{"k8s.example.org.", "cluster.local.", "deep.cluster.local."}, reverse: "10.96.0.0/12 fd00:10:240::/44", options: []string{"pods insecure"}},
		{name: "root", zones: []string{"."}, options: []string{"pods insecure"}},
		{name: "labels", zones: cluster, reverse: reverse, options: []string{"labels app in (web, both)", "pods verified"}, verified: true},
		{name: "namespace-labels", zones: cluster, options: []string{"namespace_labels team=red", "pods insecure"}},
		{name: "zonal", zones: cluster, reverse: reverse, options: []string{"zonal", "pods insecure"}},
		{name: "multicluster", zones: []string{"clusterset.local.", "cluster.local."}, reverse: reverse, options: []string{"multicluster clusterset.local", "zonal", "pods verified"}, verified: true},
		{name: "limits", zones: cluster, reverse: reverse, options: []string{"apiserver_qps 50", "apiserver_burst 100", "apiserver_max_inflight 10", "startup_timeout 10s"}},
		{name: "external", zones: []string{"cluster.local.", externalZone}, options: []string{"ttl 17"}, external: true},
		{name: "external-wide", zones: []string{"cluster.local.", externalZone}, options: []string{"endpoint_pod_names"}, external: true, behind: true, wide: true},
		{name: "no-reverse", zones: cluster, options: []string{"pods insecure", "endpoint_pod_names", "ignore empty_service", "fallthrough"}},
	}
}

// The zones of k8s_external. In the first, names have no "svc".
const (
	externalZone    = "ext.test."
	externalReverse = "192.0.2.0/24"
)

// exampleNet is the zone outside that ExternalName services lead into.
const exampleNet = `$ORIGIN example.net.
@      3600 IN SOA ns hostmaster 1 7200 1800 86400 60
       3600 IN NS ns
ns     60 IN A 192.0.2.53
www    60 IN A 192.0.2.80
       60 IN AAAA 2001:db8::80
       60 IN TXT "text"
alias  60 IN CNAME www
only4  60 IN A 192.0.2.4
back   60 IN CNAME web.hand.svc.cluster.local.
`

// behindAll is a zone that has every name.
const behindAll = `@ 3600 IN SOA ns hostmaster 1 7200 1800 86400 60
  3600 IN NS ns
ns 60 IN A 192.0.2.54
*  60 IN A 192.0.2.99
   60 IN PTR fell.through.
   60 IN TXT "fell through"
`

// corefile returns one server block for each variant for one of the two programs, and notes where they listen.
func corefile(t *testing.T, all []*variant, api string, which string) string {
	t.Helper()
	dir := t.TempDir()
	zone, behind := filepath.Join(dir, "db.example.net"), filepath.Join(dir, "db.behind")
	text := exampleNet
	for i := range 120 {
		text += fmt.Sprintf("big 60 IN A 192.0.2.%d\n", i+1)
	}
	for file, text := range map[string]string{zone: text, behind: behindAll} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for _, v := range all {
		port := freePort(t)
		*v.address(which) = fmt.Sprintf("127.0.0.1:%d", port)
		fmt.Fprintf(&b, ".:%d {\n    errors\n", port)
		if !v.wide {
			b.WriteString("    bind 127.0.0.1\n")
		}
		zones := strings.ReplaceAll(strings.Join(v.zones, " "), externalZone, "")
		fmt.Fprintf(&b, "    kubernetes %s %s {\n        endpoint %s\n", zones, v.reverse, api)
		for _, o := range v.options {
			fmt.Fprintf(&b, "        %s\n", o)
		}
		fmt.Fprintf(&b, "    }\n    file %s example.net\n", zone)
		if v.external {
			fmt.Fprintf(&b, "    k8s_external %s %s {\n        ttl 9\n        headless\n", externalZone, externalReverse)
			if v.behind {
				b.WriteString("        fallthrough\n")
			}
			b.WriteString("    }\n")
		}
		if v.behind {
			fmt.Fprintf(&b, "    file %s cluster.local in-addr.arpa ip6.arpa ext.test\n", behind)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// address returns where the address of one of the two servers is kept.
func (v *variant) address(which string) *string {
	if which == "stock" {
		return &v.stock
	}
	return &v.ours
}
