package kubernetes

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

// defaults is what a stanza with one zone gives.
func defaults(change func(c *config)) *config {
	c := &config{
		file: "Testfile", line: 1, zones: []string{"cluster.local."}, primary: "cluster.local.",
		namespaces: map[string]struct{}{}, pods: podsDisabled, ttl: 5, startupTimeout: 5 * time.Second,
		source: stores.Source{CheckEvery: 10 * time.Minute},
	}
	change(c)
	return c
}

func TestOptions(t *testing.T) {
	t.Setenv("BRAID_TEST_UNSET", "")
	tests := []struct {
		text string
		want func(c *config)
	}{
		{"", func(*config) {}},
		{"manifests examples", func(c *config) { c.source = stores.Source{Manifests: "examples"} }},
		{`manifests ""`, func(*config) {}},
		{"manifests \"\"\nkubeconfig k", func(c *config) { c.source = stores.Source{Kubeconfig: "k", CheckEvery: 10 * time.Minute} }},
		{"kubeconfig k dev", func(c *config) {
			c.source = stores.Source{Kubeconfig: "k", Context: "dev", CheckEvery: 10 * time.Minute}
		}},
		{"endpoint http://a\ntls c k ca", func(c *config) {
			c.source = stores.Source{Endpoint: "http://a", CertFile: "c", KeyFile: "k", CAFile: "ca", CheckEvery: 10 * time.Minute}
		}},
		{"endpoint http://a http://b", func(c *config) {
			c.source = stores.Source{Endpoint: "http://a", CheckEvery: 10 * time.Minute}
			c.warnings = []string{`Testfile:2: endpoint takes one URL; only "http://a" is used`}
		}},
		{"tls c k ca", func(c *config) {
			c.warnings = []string{"Testfile:1: tls has no effect without endpoint; remove it"}
		}},
		{"kubeconfig k\nendpoint http://a\ntls c k ca", func(c *config) {
			c.source = stores.Source{Kubeconfig: "k", CheckEvery: 10 * time.Minute}
			c.warnings = []string{"Testfile:1: kubeconfig wins over endpoint; remove one"}
		}},
		{"namespaces a b\nnamespaces c", func(c *config) { c.namespaces = map[string]struct{}{"a": {}, "b": {}, "c": {}} }},
		{"pods disabled", func(*config) {}},
		{"pods insecure", func(c *config) { c.pods = podsInsecure }},
		{"pods verified", func(c *config) { c.pods = podsVerified }},
		{"endpoint_pod_names", func(c *config) { c.view = names.View{PodNames: true} }},
		{"noendpoints", func(c *config) { c.view = names.View{NoEndpoints: true} }},
		{"ignore empty_service", func(c *config) { c.view = names.View{IgnoreEmpty: true} }},
		{"ignore", func(c *config) {
			c.warnings = []string{"Testfile:2: ignore does nothing without the word empty_service"}
		}},
		{"ttl 0", func(c *config) { c.ttl = 0 }},
		{"ttl 3600", func(c *config) { c.ttl = 3600 }},
		{"fallthrough", func(c *config) { c.fall.Zones = []string{"."} }},
		{"fallthrough in-addr.arpa Example.org", func(c *config) { c.fall.Zones = []string{"in-addr.arpa.", "example.org."} }},
		{"startup_timeout 90s", func(c *config) { c.startupTimeout = 90 * time.Second }},
		{"ttl 7 seconds", func(c *config) {
			c.ttl = 7
			c.warnings = []string{`Testfile:2: ttl: "seconds" has no effect; remove it`}
		}},
		{"ignore empty_service please", func(c *config) {
			c.view = names.View{IgnoreEmpty: true}
			c.warnings = []string{`Testfile:2: ignore empty_service: "please" has no effect; remove it`}
		}},
		{"apiserver_qps 12.5\napiserver_burst 30\napiserver_max_inflight 4", func(c *config) {
			c.source.QPS, c.source.Burst, c.source.MaxInflight = 12.5, 30, 4
		}},
		{"labels environment in (staging, qa),app=web", func(c *config) { c.source.Labels = "app=web,environment in (qa,staging)" }},
		{"namespace_labels !secret", func(c *config) { c.source.NamespaceLabels = "!secret" }},
		{"endpoints all", func(*config) {}},
		{"endpoints headless", func(c *config) { c.source.HeadlessOnly = true }},
		{"zonal", func(c *config) { c.zonal = true }},
		{"multicluster cluster.local", func(c *config) { c.sets = []string{"cluster.local."} }},
		{"multicluster", func(c *config) {
			c.sets = []string{}
			c.warnings = []string{"Testfile:2: multicluster does nothing without a zone"}
		}},
		{"nearest", func(c *config) { c.nearest = true }},
		{"explain 10.0.0.7/8 fd00::1", func(c *config) {
			c.explain = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::1/128")}
		}},
		{"explain", func(c *config) {
			c.explain = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		}},
		{"self_check 1m", func(c *config) { c.source.CheckEvery = time.Minute }},
		{"self_check off", func(c *config) { c.source.CheckEvery = 0 }},
		{"manifests m\nendpoints headless", func(c *config) {
			c.source = stores.Source{Manifests: "m"}
			c.warnings = []string{"Testfile:1: endpoints headless and apiserver_… have no effect with manifests; remove them"}
		}},
		{"upstream", func(c *config) {
			c.warnings = []string{"Testfile:2: upstream has no effect: external names are resolved through this server itself; remove the line"}
		}},
		{"pods insecure\nupstream 8.8.8.8 /etc/resolv.conf", func(c *config) {
			c.pods = podsInsecure
			c.warnings = []string{"Testfile:3: upstream has no effect: external names are resolved through this server itself; remove the line"}
		}},
		{"resyncperiod 5m", func(c *config) {
			c.warnings = []string{"Testfile:2: resyncperiod has no effect: changes are watched; remove the line"}
		}},
		{"transfer to *", func(c *config) {
			c.warnings = []string{"Testfile:2: transfer has no effect inside kubernetes: use the transfer plugin in the server block; remove the line"}
		}},
	}
	for _, tc := range tests {
		got, err := parse(caddy.NewTestController("dns", "kubernetes cluster.local {\n"+tc.text+"\n}"))
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		if want := defaults(tc.want); !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v\nwant %+v", tc.text, got, want)
		}
	}
}

func TestZones(t *testing.T) {
	tests := []struct {
		text    string
		keys    []string
		zones   []string
		primary string
	}{
		{"kubernetes", []string{"Cluster.Local:53", "in-addr.arpa"}, []string{"cluster.local.", "in-addr.arpa."}, "cluster.local."},
		{"kubernetes in-addr.arpa a.local", nil, []string{"in-addr.arpa.", "a.local."}, "a.local."},
		{"kubernetes ip6.arpa", nil, []string{"ip6.arpa."}, "ip6.arpa."},
		{"kubernetes 10.96.0.0/16 a.local b.local", nil, []string{"96.10.in-addr.arpa.", "a.local.", "b.local."}, "a.local."},
	}
	for _, tc := range tests {
		c := caddy.NewTestController("dns", tc.text)
		c.ServerBlockKeys = tc.keys
		got, err := parse(c)
		if err != nil {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		if !slices.Equal(got.zones, tc.zones) || got.primary != tc.primary {
			t.Errorf("%q: zones %q primary %q, want %q %q", tc.text, got.zones, got.primary, tc.zones, tc.primary)
		}
	}
}

// Every error says where, what was found, and what would have been right.
func TestErrors(t *testing.T) {
	all := "apiserver_burst, apiserver_max_inflight, apiserver_qps, endpoint, endpoint_pod_names, endpoints, explain, fallthrough, ignore, kubeconfig, labels, manifests, multicluster, namespace_labels, namespaces, nearest, noendpoints, pods, resyncperiod, self_check, startup_timeout, tls, transfer, ttl, upstream, zonal"
	tests := []struct{ text, want string }{
		{"kubernetes cluster.local {\npod insecure\n}", `Testfile:2 - Error during parsing: unknown property "pod"; accepted: ` + all},
		{"kubernetes cluster.local {\nttl 5\npods sometimes\n}", `Testfile:3 - Error during parsing: pods: found "sometimes", want disabled, insecure or verified`},
		{"kubernetes cluster.local {\npods\n}", `Testfile:2 - Error during parsing: pods: found "", want disabled, insecure or verified`},
		{"kubernetes cluster.local {\npods insecure verified\n}", `Testfile:2 - Error during parsing: pods: found "insecure verified", want disabled, insecure or verified`},
		{"kubernetes cluster.local {\nttl 3601\n}", `Testfile:2 - Error during parsing: ttl: found "3601", want a number of seconds from 0 to 3600`},
		{"kubernetes cluster.local {\nttl -1\n}", `Testfile:2 - Error during parsing: ttl: found "-1", want a number of seconds from 0 to 3600`},
		{"kubernetes cluster.local {\nttl 5s\n}", `Testfile:2 - Error during parsing: ttl: found "5s", want a number of seconds from 0 to 3600`},
		{"kubernetes cluster.local {\nstartup_timeout soon\n}", `Testfile:2 - Error during parsing: startup_timeout: found "soon", want a duration such as 5s`},
		{"kubernetes cluster.local {\nignore everything\n}", `Testfile:2 - Error during parsing: ignore: found "everything", want empty_service`},
		{"kubernetes cluster.local {\nnoendpoints please\n}", `Testfile:2 - Error during parsing: noendpoints: found "please", want nothing`},
		{"kubernetes cluster.local {\nendpoint_pod_names yes\n}", `Testfile:2 - Error during parsing: endpoint_pod_names: found "yes", want nothing`},
		{"kubernetes cluster.local {\nnamespaces\n}", `Testfile:2 - Error during parsing: namespaces: found "", want one or more namespaces`},
		{"kubernetes cluster.local {\nmanifests\n}", `Testfile:2 - Error during parsing: manifests: found "", want one path, or nothing behind an empty variable to use the API server`},
		{"kubernetes cluster.local {\nkubeconfig a b c\n}", `Testfile:2 - Error during parsing: kubeconfig: found "a b c", want a file and optionally a context`},
		{"kubernetes cluster.local {\nendpoint\n}", `Testfile:2 - Error during parsing: endpoint: found "", want the URL of the API server`},
		{"kubernetes cluster.local {\ntls cert key\n}", `Testfile:2 - Error during parsing: tls: found "cert key", want three files: certificate, key, CA certificate`},
		{"kubernetes cluster.local {\nfallthrough a..b\n}", `Testfile:2 - Error during parsing: fallthrough: found "a..b", want zones`},
		{"kubernetes cluster.local {\napiserver_qps -1\n}", `Testfile:2 - Error during parsing: apiserver_qps: found "-1", want a number of requests per second, 0 or more`},
		{"kubernetes cluster.local {\napiserver_qps NaN\n}", `Testfile:2 - Error during parsing: apiserver_qps: found "NaN", want a number of requests per second, 0 or more`},
		{"kubernetes cluster.local {\napiserver_burst 1.5\n}", `Testfile:2 - Error during parsing: apiserver_burst: found "1.5", want a number of requests, 0 or more`},
		{"kubernetes cluster.local {\napiserver_max_inflight many\n}", `Testfile:2 - Error during parsing: apiserver_max_inflight: found "many", want a number of requests, 0 or more`},
		{"kubernetes cluster.local {\nlabels\n}", `Testfile:2 - Error during parsing: labels: found "", want a label selector such as app=web`},
		{"kubernetes cluster.local {\nlabels a=b=c\n}", `Testfile:2 - Error during parsing: labels: found "a=b=c" (couldn't parse the selector string "a=b=c": found '=', expected: ',' or 'end of string'), want a label selector such as app=web`},
		{"kubernetes cluster.local {\nendpoints some\n}", `Testfile:2 - Error during parsing: endpoints: found "some", want all or headless`},
		{"kubernetes cluster.local {\nzonal yes\n}", `Testfile:2 - Error during parsing: zonal: found "yes", want nothing`},
		{"kubernetes cluster.local {\nmulticluster clusterset.local\n}", `Testfile:1 - Error during parsing: multicluster: found "clusterset.local.", want zones of this stanza: cluster.local. (is not authoritative for the multicluster zone)`},
		{"kubernetes cluster.local {\nexplain nobody\n}", `Testfile:2 - Error during parsing: explain: found "nobody", want addresses or address ranges of clients, or nothing for all`},
		{"kubernetes cluster.local {\nself_check never\n}", `Testfile:2 - Error during parsing: self_check: found "never", want a duration such as 10m, or off`},
		{"kubernetes cluster.local {\nnamespaces a\nnamespace_labels b\n}", `Testfile:1 - Error during parsing: namespaces and namespace_labels cannot both be set; keep one`},
		{"kubernetes cluster.local {\nzonal\nnoendpoints\n}", `Testfile:1 - Error during parsing: zonal requires endpoints; remove noendpoints or zonal`},
		{"kubernetes cluster.local {\nendpoints headless\nnoendpoints\n}", `Testfile:1 - Error during parsing: endpoints headless and noendpoints are both set; keep one`},
		{"kubernetes cluster.local {\nendpoints headless\nignore empty_service\n}", `Testfile:1 - Error during parsing: ignore empty_service needs the endpoints of every service; remove it or endpoints headless`},
		{"kubernetes cluster.local {\nendpoints headless\nmulticluster cluster.local\n}", `Testfile:1 - Error during parsing: multicluster needs the endpoints of every service; remove it or endpoints headless`},
		{"kubernetes cluster..local", `Testfile:1 - Error during parsing: zone: found "cluster..local", want a domain name or an address range such as 10.0.0.0/8`},
		{"kubernetes 10.0.0.0/8", `Testfile:1 - Error during parsing: zones: found only reverse zones ["10.in-addr.arpa."], want at least one forward zone such as cluster.local (non-reverse zone name must be used)`},
		{"kubernetes a.local\nkubernetes b.local", `Testfile:2 - Error during parsing: a second kubernetes stanza in this server block; put its zones into the first`},
		{"kubernetes cluster.local {\nmanifests m\nendpoint http://a\n}", `Testfile:1 - Error during parsing: manifests "m" and an API server (kubeconfig or endpoint) are both set; keep one`},
	}
	for _, tc := range tests {
		_, err := parse(caddy.NewTestController("dns", tc.text))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%q:\n got %v\nwant %s", tc.text, err, tc.want)
		}
	}
}

func TestSourcesAreCheckedBeforeTheStart(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	tests := []struct{ text, want string }{
		{"manifests /nonexistent/manifests", "Testfile:1 - Error during parsing: manifests /nonexistent/manifests: "},
		{"kubeconfig /nonexistent/config", "Testfile:1 - Error during parsing: kubeconfig /nonexistent/config: "},
		{"ttl 5", "Testfile:1 - Error during parsing: in-cluster API server: "},
	}
	for _, tc := range tests {
		cfg, err := parse(caddy.NewTestController("dns", "kubernetes cluster.local {\n"+tc.text+"\n}"))
		if err != nil {
			t.Fatal(err)
		}
		if err := checkSource(cfg); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %s…", tc.text, err, tc.want)
		}
	}
	cfg, err := parse(caddy.NewTestController("dns", "kubernetes cluster.local {\nmanifests "+t.TempDir()+"\n}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkSource(cfg); err != nil {
		t.Error(err)
	}
}

// The service account needs no more rights than the options do.
func TestKinds(t *testing.T) {
	base := []model.Kind{model.KindNamespace, model.KindService}
	for text, want := range map[string][]model.Kind{
		"":                           append(slices.Clone(base), model.KindEndpointSlice),
		"pods insecure":              append(slices.Clone(base), model.KindEndpointSlice),
		"noendpoints":                base,
		"pods verified":              append(slices.Clone(base), model.KindEndpointSlice, model.KindPod),
		"noendpoints\npods verified": append(slices.Clone(base), model.KindPod),
		"nearest":                    append(slices.Clone(base), model.KindEndpointSlice, model.KindNode),
		"multicluster cluster.local\nnoendpoints": append(slices.Clone(base), model.KindEndpointSlice, model.KindServiceImport),
	} {
		cfg, err := parse(caddy.NewTestController("dns", "kubernetes cluster.local {\n"+text+"\n}"))
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.kinds(); !slices.Equal(got, want) {
			t.Errorf("%q watches %v, want %v", text, got, want)
		}
	}
}
