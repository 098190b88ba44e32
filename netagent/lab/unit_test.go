package lab

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/netagent/lab/cluster"
)

func TestLabNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"braid": true, "t1": true, "": false, "1t": false, "a-b": false, "A": false, "a.b": false, "../x": false, strings.Repeat("a", 17): false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("checkName(%q) = %v, want ok %t", name, err, ok)
		}
	}
}

// Names of namespaces must not collide between labs, pods and nodes, and must stay short.
func TestNamespaceNamesAreDistinct(t *testing.T) {
	long := strings.Repeat("very-long-name-", 12)
	seen := map[string]string{}
	for _, lab := range []string{"a", "aa"} {
		p := paths{lab}
		for what, name := range map[string]string{
			"outside": p.outsideNS(), "n1": p.nodeNS("n1"), "pod a/b-c": p.podNS("a", "b-c"), "pod a-b/c": p.podNS("a-b", "c"),
			"long 1": p.podNS("x", long+"1"), "long 2": p.podNS("x", long+"2"), "pod n1": p.podNS("default", "n1"),
		} {
			if other, dup := seen[name]; dup {
				t.Errorf("%s of lab %s and %s are both called %s", what, lab, other, name)
			}
			seen[name] = what + " of lab " + lab
			if len(name) > maxNS {
				t.Errorf("%s has %d characters, want at most %d", name, len(name), maxNS)
			}
			if !strings.HasPrefix(name, nsPrefix+lab+"-") {
				t.Errorf("%s does not show that it belongs to lab %s", name, lab)
			}
		}
	}
}

func TestOptionsNameTheFault(t *testing.T) {
	good := Options{Name: "x", Nodes: 3, Family: "dual", Backend: "vxlan", ServiceMode: "auto", Links: 1, Timeout: 1}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Options){
		"--nodes 0":        func(o *Options) { o.Nodes = 0 },
		"--nodes 99":       func(o *Options) { o.Nodes = 99 },
		`--family "v5"`:    func(o *Options) { o.Family = "v5" },
		`--backend "gre"`:  func(o *Options) { o.Backend = "gre" },
		"--service-mode":   func(o *Options) { o.ServiceMode = "ipvs" },
		"--timeout":        func(o *Options) { o.Timeout = 0 },
		"--agent-setting":  func(o *Options) { o.AgentSettings = []string{"masquerade-all"} },
		`lab name "UPPER"`: func(o *Options) { o.Name = "UPPER" },
	} {
		o := good
		spoil(&o)
		if err := o.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("validate = %v, want it to name %s", err, want)
		}
	}
}

func TestNodesHaveTheirOwnAddresses(t *testing.T) {
	o := Options{Nodes: maxNodes, Family: "dual", Links: 3}
	seen := map[string]string{}
	for _, n := range o.nodes() {
		obj := n.object(o.Created)
		if len(obj.Spec.PodCIDRs) != 2 || obj.Spec.PodCIDR != obj.Spec.PodCIDRs[0] || len(obj.Status.Addresses) != 3 {
			t.Errorf("node %s: %+v, %+v", n.name, obj.Spec, obj.Status.Addresses)
		}
		for i, f := range o.families() {
			if net := f.underlay(n.link); !net.Contains(n.ips[i]) || n.ips[i] == f.gateway(n.link) {
				t.Errorf("node %s has %s, which is not its own in %s", n.name, n.ips[i], net)
			}
			for _, s := range []string{n.ips[i].String(), n.pods[i].Masked().String()} {
				if other, dup := seen[s]; dup {
					t.Errorf("%s is of nodes %s and %s", s, other, n.name)
				}
				seen[s] = n.name
			}
		}
	}
}

func TestResolverFollowsPolicy(t *testing.T) {
	v := "3"
	config := &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}, Searches: []string{"corp.example", "cluster.local"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &v}, {Name: "edns0"}}}
	const ofCluster = "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
	const ofOutside = "nameserver 203.0.113.10\nnameserver 2001:db8:99::10\n"
	for name, c := range map[string]struct {
		pod  cluster.PodSandbox
		want string
	}{
		"no policy":             {cluster.PodSandbox{}, ofCluster},
		"ClusterFirst":          {cluster.PodSandbox{DNSPolicy: corev1.DNSClusterFirst}, ofCluster},
		"ClusterFirst on host":  {cluster.PodSandbox{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, ofOutside},
		"WithHostNet":           {cluster.PodSandbox{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true}, ofCluster},
		"Default":               {cluster.PodSandbox{DNSPolicy: corev1.DNSDefault}, ofOutside},
		"None":                  {cluster.PodSandbox{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1"}}}, "nameserver 192.0.2.1\n"},
		"ClusterFirst and more": {cluster.PodSandbox{DNSConfig: config}, "nameserver 10.96.0.10\nnameserver 192.0.2.1\nsearch ns.svc.cluster.local svc.cluster.local cluster.local corp.example\noptions ndots:3 edns0\n"},
	} {
		c.pod.Namespace = "ns"
		if got := string(resolverOf(&Options{Family: "dual"}, c.pod).file()); got != c.want {
			t.Errorf("%s:\n%swant:\n%s", name, got, c.want)
		}
	}
	if got := resolverOf(&Options{Family: "v6"}, cluster.PodSandbox{}).servers; len(got) != 1 || got[0] != "fd00:10:96::a" {
		t.Errorf("a pod of an IPv6 lab resolves at %v", got)
	}
}

func TestHostsFile(t *testing.T) {
	pod := cluster.PodSandbox{Namespace: "ns", Subdomain: "db", HostAliases: []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"x", "y"}}}}
	got := string(hostsFile(pod, &sandbox{Hostname: "db-0", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.244.1.2\tdb-0.db.ns.svc.cluster.local\tdb-0\n", "192.0.2.9\tx\ty\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing from:\n%s", want, got)
		}
	}
}

func TestNsswitchAsksFilesAndDNSOnly(t *testing.T) {
	for in, want := range map[string]string{
		"passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n": "passwd: files\nhosts: files dns\n",
		"passwd: files\n": "passwd: files\nhosts: files dns\n",
	} {
		if got := string(nsswitch([]byte(in))); got != want {
			t.Errorf("nsswitch(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestOutsideResolver(t *testing.T) {
	addrs := []netip.Addr{ipv4.outside, ipv6.outside}
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		data  string // of the only answer; empty = none
	}{
		{"outside.example.", dns.TypeA, dns.RcodeSuccess, "203.0.113.10"},
		{"OUTSIDE.example.", dns.TypeAAAA, dns.RcodeSuccess, "2001:db8:99::10"},
		{"outside.example.", dns.TypeMX, dns.RcodeSuccess, ""},
		{"www.outside.example.", dns.TypeA, dns.RcodeNameError, ""},
		{"other.test.", dns.TypeA, dns.RcodeNameError, ""},
	} {
		m := outsideAnswer(new(dns.Msg).SetQuestion(c.name, c.qtype), addrs)
		got := ""
		for _, rr := range m.Answer {
			if rr.Header().Name != c.name {
				t.Errorf("%s: answer is of %s", c.name, rr.Header().Name)
			}
			got += rr.String()[len(rr.Header().String()):]
		}
		if m.Rcode != c.rcode || got != c.data {
			t.Errorf("%s %s: %s %q, want %s %q", c.name, dns.TypeToString[c.qtype], dns.RcodeToString[m.Rcode], got, dns.RcodeToString[c.rcode], c.data)
		}
		if negative := len(m.Answer) == 0; negative != (len(m.Ns) == 1) {
			t.Errorf("%s: a negative answer must carry one SOA and a positive none, it has %v", c.name, m.Ns)
		}
		if _, err := m.Pack(); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// The endpoint of a node whose CoreDNS does not answer must not be used.
func TestDNSSliceFollowsReadiness(t *testing.T) {
	s := dnsSlice(&Options{Nodes: 2, Family: "dual"}, 1, map[string]bool{"n2": true})
	if len(s.Endpoints) != 2 || *s.Endpoints[0].Conditions.Ready || !*s.Endpoints[1].Conditions.Ready {
		t.Fatalf("endpoints: %+v", s.Endpoints)
	}
	if got := s.Endpoints[1]; got.Addresses[0] != "fd77::12" || *got.NodeName != "n2" || got.Hints.ForNodes[0].Name != "n2" {
		t.Errorf("endpoint of n2: %+v", got)
	}
}

func TestPIDFileNamesOneProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	if err := writePID(file); err != nil {
		t.Fatal(err)
	}
	if got := recordedPID(file); got != os.Getpid() {
		t.Errorf("recordedPID = %d, want %d", got, os.Getpid())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// The same pid with another start time is another process.
	if err := os.WriteFile(file, append(bytes.TrimSpace(data), '0', '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := recordedPID(file); got != 0 {
		t.Errorf("recordedPID takes process %d for one that started at another time", got)
	}
}

func TestManifestsOfFolders(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b.yaml", "a.yml", "c.json", ".hidden.yaml", "README.md"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := readManifests([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		got = append(got, filepath.Base(f.Name))
	}
	if strings.Join(got, " ") != "a.yml b.yaml c.json" {
		t.Errorf("files = %v", got)
	}
	if _, err := readManifests([]string{filepath.Join(dir, "none.yaml")}); err == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestProgressPrintsEachThingOnce(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	s := Status{Phase: PhaseNodes, Nodes: []NodeStatus{{Name: "n1"}}, Pods: 2}
	p.show(&s)
	s.Nodes[0].Agent.Ready = true
	p.show(&s)
	p.show(&s)
	s.Phase, s.PodsReady = PhasePods, 1
	p.show(&s)
	p.show(&s)
	const want = "  starting nodes\n  node n1: agent ready ()\n  starting pods\n  pods 1/2 ready\n"
	if out.String() != want {
		t.Errorf("printed:\n%swant:\n%s", out.String(), want)
	}
}

func TestPodTargets(t *testing.T) {
	for target, want := range map[string]string{
		"web-0": "shop web-0", "pod/web-0": "shop web-0", "other/web-0": "other web-0", "pod/other/web-0": "other web-0",
	} {
		if ns, name := podTarget("shop", target); ns+" "+name != want {
			t.Errorf("podTarget(%q) = %s %s, want %s", target, ns, name, want)
		}
	}
}

func TestPathHasAdministrationTools(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/usr/sbin")
	if err := extendPath("/lab/bin"); err != nil {
		t.Fatal(err)
	}
	if got, want := os.Getenv("PATH"), "/lab/bin:/usr/bin:/usr/sbin:/usr/local/sbin:/sbin"; got != want {
		t.Errorf("PATH=%s, want %s", got, want)
	}
}

func TestLastLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{"": "", "\n": "", "a": "a", "a\nb\nc\n": "b|c", strings.Repeat("x", 40<<10) + "\nend\n": "end"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got := lastLines(path, 2)
		if len(text) > 100 {
			got = got[1:] // a line cut short by the bound on what is read
		}
		if strings.Join(got, "|") != want {
			t.Errorf("last lines of %.20q: %q, want %s", text, got, want)
		}
	}
	if got := lastLines(path+".absent", 2); got != nil {
		t.Errorf("last lines of no file: %q", got)
	}
}

func TestStatusCountsEndingPodsApart(t *testing.T) {
	var out bytes.Buffer
	s := Status{Name: "x", Phase: PhaseUp, Pods: 2, PodsReady: 2, PodsEnding: 3}
	if err := s.text(&out, time.Now()); err != nil || !strings.Contains(out.String(), "pods 2/2 ready, 3 ending, services 0") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestMetricReadsTheSeriesOnly(t *testing.T) {
	page := "# HELP x_total y\nx_total_more{a=\"b\"} 7\nx_total{source=\"manifests /a\"} 1.5\nx_total{source=\"c\"} 9\n"
	for name, want := range map[string]float64{"x_total": 1.5, "x_total_more": 7, "x": 0, "none": 0} {
		if got := metric(page, name); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if got := metric("m{source=\"manifests /run/x\"} 1.795e+09\n", "m"); got != 1.795e9 {
		t.Errorf("got %v", got)
	}
}
