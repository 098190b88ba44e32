package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy/worlds"
)

func setNamespace(name string) model.Change {
	return set1(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

func set1(o runtime.Object) model.Change {
	value := convert(o)
	return model.Change{Ref: value.From().Ref, New: value}
}

func setPod(key, labels, spec, status string) model.Change {
	var p corev1.Pod
	must(yaml.UnmarshalStrict([]byte(fmt.Sprintf("metadata: {labels: {%s}, uid: %s}\nspec: {%s}\nstatus: {%s}", labels, key, spec, status)), &p))
	p.Namespace, p.Name, _ = strings.Cut(key, "/")
	return set1(&p)
}

func setPolicy(key, spec string) model.Change {
	var p networkingv1.NetworkPolicy
	must(yaml.UnmarshalStrict([]byte("spec: {"+spec+"}"), &p))
	p.Namespace, p.Name, _ = strings.Cut(key, "/")
	return set1(&p)
}

func gone(c model.Change) model.Change { return model.Change{Ref: c.Ref, Old: c.New} }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func tcp(src, dst string, port uint16) Packet {
	return Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: model.TCP, Port: port}
}

// TestWhy checks the words for each way a packet can go.
func TestWhy(t *testing.T) {
	c := NewCompiler("n1")
	c.Apply(1, []model.Change{
		setNamespace("shop"), setNamespace("other"),
		setPod("shop/web", "app: web", "nodeName: n1", "podIP: 10.0.0.1"),
		setPod("shop/api", "app: api", "nodeName: n1, containers: [{ports: [{name: http, containerPort: 8080}]}]", "podIP: 10.0.0.2"),
		setPod("shop/far", "app: api", "nodeName: n2", "podIP: 10.0.0.3"),
		setPod("other/free", "", "nodeName: n1", "podIP: 10.0.0.4"),
		setPolicy("shop/deny", "podSelector: {}"),
		setPolicy("shop/api", "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}, {from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]"),
		setPolicy("shop/out", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]"),
	})
	if !c.Pending() {
		t.Error("nothing is pending")
	}
	c.Flush()
	if c.Pending() {
		t.Error("something is pending")
	}
	node := tcp("192.0.2.9", "10.0.0.1", 80)
	node.FromNode = true
	for _, tt := range []struct {
		packet          Packet
		egress, ingress string
	}{
		{tcp("10.0.0.1", "10.0.0.2", 8080), "allowed by shop/out (egress, rule 0)", "allowed by shop/api (ingress, rule 1)"},
		{tcp("10.0.0.1", "10.0.0.2", 80), "allowed by shop/out (egress, rule 0)", "denied: shop/api is isolated for ingress by shop/api, shop/deny, and no rule matches"},
		{tcp("10.0.0.1", "10.0.0.4", 80), "denied: shop/web is isolated for egress by shop/out, and no rule matches", "allowed: no policy isolates other/free for ingress"},
		{tcp("192.0.2.7", "10.0.0.2", 1), "no policy is asked: not a pod of this node", "allowed by shop/api (ingress, rule 0)"},
		{tcp("10.0.0.4", "10.0.0.3", 1), "allowed: no policy isolates other/free for egress", "no policy is asked: not a pod of this node"},
		{node, "no policy is asked: not a pod of this node", "allowed: from the pod's own node"},
	} {
		v := c.Eval(tt.packet)
		if v.Egress.String() != tt.egress || v.Ingress.String() != tt.ingress {
			t.Errorf("%v:\n%s\n%s\nwant\n%s\n%s", tt.packet, v.Egress, v.Ingress, tt.egress, tt.ingress)
		}
		if want := !strings.Contains(tt.egress+tt.ingress, "denied"); v.Allowed != want {
			t.Errorf("%v: allowed %v", tt.packet, v.Allowed)
		}
	}
}

// TestAddressPassesOn: while two pods claim an address it belongs to one of them, whichever news comes first.
func TestAddressPassesOn(t *testing.T) {
	ns := setNamespace("a")
	const ip = "podIP: 10.0.0.1, phase: Running"
	old, next := setPod("a/old", "role: old", "", ip), setPod("a/next", "role: next", "", ip)
	finished := setPod("a/old", "role: old", "", "podIP: 10.0.0.1, phase: Succeeded")
	terminating := setPod("a/old", "role: old", "", ip)
	stopping := *terminating.New.(*model.Pod)
	stopping.Terminating = true
	terminating.New = &stopping
	same := setPod("a/next", "role: next, more: labels", "", ip)
	for _, tt := range []struct {
		name  string
		steps []model.Change
		want  string
	}{
		{"the later one has it", []model.Change{old, next}, "a/next"},
		{"it is the last claim that counts, and other news change nothing", []model.Change{next, old, same}, "a/old"},
		{"one that ends has it while it is alone", []model.Change{terminating}, "a/old"},
		{"one that ends does not keep it", []model.Change{next, terminating}, "a/next"},
		{"one that ended has none", []model.Change{next, finished}, "a/next"},
		{"it goes back", []model.Change{old, next, gone(next)}, "a/old"},
		{"a new pod of the same name has it anew", []model.Change{old, next, gone(old), old}, "a/old"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, m := NewCompiler(""), newMirror()
			c.Apply(0, []model.Change{ns, setPolicy("a/p", "ingress: [{from: [{podSelector: {matchLabels: {role: old}}}]}]")})
			for _, s := range tt.steps {
				c.Apply(0, []model.Change{s})
				if err := m.apply(c.Flush()); err != nil {
					t.Fatal(err)
				}
			}
			if got := c.Eval(tcp("10.0.0.9", "10.0.0.1", 80)).Ingress.Pod.String(); got != tt.want || len(m.targets) != 1 {
				t.Errorf("it is %s's, targets %v", got, m.targets)
			}
			v := c.Eval(tcp("10.0.0.1", "10.0.0.1", 80))
			if v.Allowed != (tt.want == "a/old") {
				t.Errorf("as a peer it is allowed: %v", v.Allowed)
			}
		})
	}
}

// TestAttached: a pod has its addresses from the moment on at which the node says so, but only that pod.
func TestAttached(t *testing.T) {
	c, m := NewCompiler("n1"), newMirror()
	flush := func() {
		t.Helper()
		if err := m.apply(c.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	holder := func() string {
		flush()
		for _, x := range m.targets {
			return x.Pod.String() + " " + x.UID
		}
		return "nobody"
	}
	is := func(what, want string) {
		t.Helper()
		if got := holder(); got != want {
			t.Errorf("%s: %s has the address, want %s", what, got, want)
		}
	}
	pod := func(uid, status string) model.Change {
		p := setPod("a/p", "", "nodeName: n1", status)
		p.New.(*model.Pod).UID = uid
		return p
	}
	link := Attachment{Pod: model.Key{Namespace: "a", Name: "p"}, UID: "2", Link: "brd1", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	c.Apply(0, []model.Change{setNamespace("a"), pod("1", "")})
	c.Attach(link)
	is("while the pod is not known, but an older one of its name", "nobody")
	c.Apply(0, []model.Change{pod("2", "")})
	is("when the pod is known", "a/p 2")
	c.Apply(0, []model.Change{setPod("a/stale", "", "nodeName: n1", "podIP: 10.0.0.1, phase: Running")})
	is("with another one that claims it later", "a/p 2")
	c.Apply(0, []model.Change{gone(setPod("a/stale", "", "", "")), pod("2", "podIP: 10.0.0.1")})
	is("when its status has it too", "a/p 2")
	c.Detach(func(string) bool { return true })
	c.Apply(0, []model.Change{pod("2", "podIP: 10.0.0.1, phase: Failed")})
	is("when it has ended", "nobody")
	c.Apply(0, []model.Change{gone(pod("2", ""))})
	flush()
	if len(c.attached) > 0 {
		t.Errorf("attachments of a pod that is gone: %v", c.attached)
	}
	c.Attach(link)
	c.Apply(0, []model.Change{pod("2", "")})
	is("attached again", "a/p 2")
	c.Detach(func(string) bool { return false })
	is("when the interface is gone", "nobody")
}

// TestSetsAreShared: what means the same is one set, however it is written and whoever asks.
func TestSetsAreShared(t *testing.T) {
	c := NewCompiler("")
	c.Apply(0, []model.Change{
		setNamespace("a"), setPod("a/p", "app: x", "", "podIP: 10.0.0.1"),
		setPolicy("a/one", "ingress: [{from: [{podSelector: {matchLabels: {k: v, app: x}}}]}]"),
		setPolicy("a/two", "egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [x]}, {key: k, operator: In, values: [v]}]}}]}]"),
		setPolicy("a/three", "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/25}}, {ipBlock: {cidr: 10.0.0.128/25}}]}, {from: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: web}]}]"),
		setPolicy("a/four", "egress: [{ports: [{port: web}]}]"),
	})
	d := c.Flush()
	var about []string
	for _, s := range d.Sets {
		about = append(about, s.Set.About)
	}
	if len(d.Sets) != 3 {
		t.Errorf("sets %q, want one of pods, one of addresses, one of ports", about)
	}
}

// TestBrokenPolicyCloses: a rule whose only peer cannot be understood allows nobody.
func TestBrokenPolicyCloses(t *testing.T) {
	c := NewCompiler("")
	broken := setPolicy("a/p", "")
	broken.New = &model.NetworkPolicy{Origin: broken.New.From(), PodSelector: broken.New.(*model.NetworkPolicy).PodSelector, Ingress: true,
		IngressRules: []model.PolicyRule{{AnyPort: true}, {AnyPeer: true}}}
	c.Apply(0, []model.Change{setNamespace("a"), setPod("a/p", "", "", "podIP: 10.0.0.1"), broken})
	c.Flush()
	if v := c.Eval(tcp("10.0.0.9", "10.0.0.1", 80)); v.Allowed {
		t.Errorf("allowed: %s", v.Ingress)
	}
}

// large is a cluster with many pods and policies: as many namespaces as policies/10.
func large(pods, policies, local int) (out []model.Change) {
	spaces := policies / 10
	for i := range spaces {
		out = append(out, setNamespace(fmt.Sprintf("ns-%d", i)))
	}
	for i := range pods {
		node := "far"
		if i < local {
			node = "n1"
		}
		out = append(out, setPod(fmt.Sprintf("ns-%d/pod-%d", i%spaces, i), fmt.Sprintf("app: app-%d", i%7), "nodeName: "+node, fmt.Sprintf("podIP: 10.%d.%d.%d", i>>16, i>>8&255, i&255)))
	}
	for i := range policies {
		out = append(out, setPolicy(fmt.Sprintf("ns-%d/policy-%d", i%spaces, i), fmt.Sprintf("podSelector: {matchLabels: {app: app-%d}}, "+
			"ingress: [{from: [{podSelector: {matchLabels: {app: app-%d}}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ns-%d}}}], ports: [{port: 80}]}]", i/spaces%7, (i/spaces+1)%7, (i+1)%spaces)))
	}
	return out
}

// TestChangesStaySmall: what a change makes the renderer do does not grow with the cluster.
func TestChangesStaySmall(t *testing.T) {
	c := NewCompiler("n1")
	c.Apply(0, large(2000, 200, 100))
	c.Flush()
	for _, tt := range []struct {
		name   string
		change model.Change
		most   int
	}{
		{"a pod far away", setPod("ns-1/new", "app: app-1", "nodeName: far", "podIP: 10.9.0.1"), 2},
		{"a pod here", setPod("ns-1/new2", "app: app-1", "nodeName: n1", "podIP: 10.9.0.2"), 3},
		{"a policy of others", setPolicy("ns-1/nobody", "podSelector: {matchLabels: {app: none}}"), 0},
		{"a port of a policy", setPolicy("ns-1/policy-1", "podSelector: {matchLabels: {app: app-0}}, ingress: [{ports: [{port: 81}]}]"), 3},
	} {
		c.Apply(0, []model.Change{tt.change})
		d := c.Flush()
		n := len(d.Sections) + len(d.Chains) + len(d.Targets)
		for _, s := range d.Sets {
			n += 1 + len(s.Add) + len(s.Remove)
		}
		if n > 2*tt.most {
			t.Errorf("%s: %d changes: %+v", tt.name, n, d)
		}
	}
}

func BenchmarkPodChurn(b *testing.B) {
	c := NewCompiler("n1")
	c.Apply(0, large(5000, 1000, 100))
	c.Flush()
	p := setPod("ns-1/new", "app: app-1", "nodeName: n1", "podIP: 10.9.0.1")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 {
			c.Apply(0, []model.Change{p})
		} else {
			c.Apply(0, []model.Change{gone(p)})
		}
		c.Flush()
	}
}

func BenchmarkPolicyChange(b *testing.B) {
	c := NewCompiler("n1")
	c.Apply(0, large(5000, 1000, 100))
	c.Flush()
	list := []model.Change{setPolicy("ns-1/p", "ingress: [{from: [{namespaceSelector: {}}]}]"), setPolicy("ns-1/p", "ingress: [{from: [{podSelector: {}}]}]")}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.Apply(0, list[i%2:i%2+1])
		c.Flush()
	}
}

func BenchmarkStart(b *testing.B) {
	all := large(5000, 1000, 100)
	b.ReportAllocs()
	for b.Loop() {
		c := NewCompiler("n1")
		c.Apply(0, all)
		c.Flush()
	}
}

// TestReachText: what is printed is read back as the same.
func TestReachText(t *testing.T) {
	d := worlds.NewDice(5, 0)
	for range 2000 {
		var r Reach
		for range d.IntN(5) {
			from := uint16(d.IntN(70))
			r.Ports = append(r.Ports, PortRange{worlds.Pick(d, []model.Protocol{model.TCP, model.UDP, model.SCTP}), from, from + uint16(d.IntN(20))})
		}
		if d.One(3) {
			r.Ports = append(r.Ports, PortRange{model.UDP, 0, 65535})
		}
		r.Ports = joinPorts(r.Ports)
		if again, err := ParseReach(r.String()); err != nil || again.String() != r.String() || again.All != r.All {
			t.Fatalf("%q is read as %q, %v", r, again, err)
		}
	}
	for _, text := range []string{"80", "80/tcp", "-/TCP", "90-80/TCP", "70000/TCP", "80/TCP none", "", "1-/UDP"} {
		if r, err := ParseReach(text); err == nil && text != "" {
			t.Errorf("%q is read as %q", text, r)
		}
	}
}
