package nftables

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds"
	"github.com/braidnet/braid/netagent/policy/worlds/probe"
)

// TestPeopleCanList: `nft list` prints what is in the kernel, with the names of the objects.
func TestPeopleCanList(t *testing.T) {
	k := newKernel(t, Options{Bridge: "pods0", Log: true})
	w := probe.WithOpenPod(worlds.World{})
	var p networkingv1.NetworkPolicy
	if err := yaml.UnmarshalStrict([]byte(`
metadata: {name: deny, namespace: open}
spec:
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 80, endPort: 90}, {port: http}]
`), &p); err != nil {
		t.Fatal(err)
	}
	w.Policies = append(w.Policies, &p)
	k.node.Become(worlds.World{}, w)
	text := k.node.Exec(t, "nft", "list", "table", "ip", TableName)
	for _, part := range []string{"10.0.0.0-10.0.255.255", "10.2.0.0-10.255.255.255", "tcp dport 80-90", `"pods app=web of namespace open"`, `comment "policy open/deny"`,
		`comment "no rule matches: open/deny"`, "open/deny ingress rule 0", "reject with tcp reset", `10.244.1.200 comment "open/open" : goto ingress-`} {
		if !strings.Contains(text, part) {
			t.Errorf("the listing lacks %q", part)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
	// What nft lists, it takes back: so the rules mean what they say.
	file := filepath.Join(t.TempDir(), "table.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	k.node.Exec(t, "nft", "delete table ip "+TableName)
	k.node.Exec(t, "nft", "-f", file)
}

// TestDamageIsRepaired: whatever somebody does to the table, it is made anew, in one transaction.
func TestDamageIsRepaired(t *testing.T) {
	k := newKernel(t, Options{Bridge: "pods0"})
	d := worlds.NewDice(11, 4)
	w := probe.WithOpenPod(d.World())
	for len(w.Policies) < 3 {
		w = probe.WithOpenPod(d.World())
	}
	k.node.Become(worlds.World{}, w)
	for _, damage := range []string{"flush ruleset", "delete table ip braid-policy", "flush chain ip braid-policy from-pods", "delete element ip braid-policy egress { 10.244.1.200 }",
		"add element ip6 braid-policy ingress { fd00::1 : goto open }", "add chain ip braid-policy more", "add set ip braid-policy more { type ipv4_addr; }",
		"add rule ip braid-policy to-pods accept", "insert rule ip6 braid-policy open drop"} {
		k.node.Exec(t, "nft", damage)
		ops, _ := k.state.Replace(k.node.Compiler.All(), k.read())
		if len(ops) == 0 {
			t.Errorf("%s: not seen", damage)
		}
		k.write(ops, nil)
		if ops, why := k.state.Replace(k.node.Compiler.All(), k.read()); len(ops) > 0 {
			t.Errorf("%s: still damaged: %v", damage, why)
		}
	}
}

// TestOptionsAndLayout: a table that was made with other options is another one.
func TestOptionsAndLayout(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Families {
		for _, o := range []Options{{Bridge: "a"}, {Bridge: "b"}, {Bridge: "a", Drop: true}} {
			seen[Skeleton(f, o).Comment] = true
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d layouts, want 6", len(seen))
	}
	if _, err := NewState([]desired.NFTFamily{desired.NFTIPv4}, Options{}).Apply(policy.Delta{}); err == nil {
		t.Error("a state that knows nothing took a change")
	}
}
