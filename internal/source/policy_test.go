package source

import (
	"cmp"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/braidnet/braid/internal/model"
)

const polHead = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n"

func TestConvertPolicy(t *testing.T) {
	pol := func(change func(*model.NetworkPolicy)) *model.NetworkPolicy {
		p := &model.NetworkPolicy{Origin: origin(model.KindNetworkPolicy, "shop", "deny"), PodSelector: labels.Everything(), Ingress: true}
		change(p)
		return p
	}
	every := model.PolicyRule{AnyPeer: true, AnyPort: true}
	tests := []struct {
		name, in string
		want     *model.NetworkPolicy
	}{
		{"no types or rules", "{podSelector: {}}", pol(func(*model.NetworkPolicy) {})},
		{"no selector", "{ingress: []}", pol(func(*model.NetworkPolicy) {})},
		{"no types, with egress", "{podSelector: {matchLabels: {a: b}}, egress: [{}]}", pol(func(p *model.NetworkPolicy) {
			p.PodSelector, p.Egress, p.EgressRules = selector(t, "a=b"), true, []model.PolicyRule{every}
		})},
		{"no types, egress empty", "{podSelector: {}, egress: []}", pol(func(*model.NetworkPolicy) {})},
		{"egress only", "{podSelector: {matchLabels: {a: b}}, policyTypes: [Egress]}", pol(func(p *model.NetworkPolicy) {
			p.PodSelector, p.Ingress, p.Egress = selector(t, "a=b"), false, true
		})},
		{"empty lists mean any", "{ingress: [{from: [], ports: []}]}", pol(func(p *model.NetworkPolicy) { p.IngressRules = []model.PolicyRule{every} })},
		{"peers", "{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}, {podSelector: {matchLabels: {a: b}}, namespaceSelector: {matchLabels: {tier: m}}}]}]}",
			pol(func(p *model.NetworkPolicy) {
				p.IngressRules = []model.PolicyRule{{AnyPort: true, Peers: []model.PolicyPeer{{Pods: labels.Everything()},
					{Pods: labels.Everything(), Namespaces: labels.Everything()}, {Pods: selector(t, "a=b"), Namespaces: selector(t, "tier=m")}}}}
			})},
		{"blocks, as old objects have them", "{ingress: [{from: [{ipBlock: {cidr: 010.0.0.1/8, except: [10.1.2.3/16]}}, {ipBlock: {cidr: '::/0'}}]}]}",
			pol(func(p *model.NetworkPolicy) {
				p.IngressRules = []model.PolicyRule{{AnyPort: true, Peers: []model.PolicyPeer{{Block: prefixes("10.0.0.0/8")[0], Except: prefixes("10.1.0.0/16")}, {Block: prefixes("::/0")[0]}}}}
			})},
		{"ports", "{ingress: [{ports: [{port: 80}, {protocol: UDP}, {port: web, protocol: SCTP}, {port: 1, endPort: 65535}]}]}",
			pol(func(p *model.NetworkPolicy) {
				p.IngressRules = []model.PolicyRule{{AnyPeer: true, Ports: []model.PolicyPort{{Protocol: model.TCP, From: 80, To: 80}, {Protocol: model.UDP, To: 65535},
					{Protocol: model.SCTP, Name: "web"}, {Protocol: model.TCP, From: 1, To: 65535}}}}
			})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Convert(object(t, polHead+"spec: "+tt.in), model.Origin{File: "f.yaml", Line: 7})
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, model.Object(tt.want)) {
				t.Errorf("got\n%+v\nwant\n%+v", got, tt.want)
			}
		})
	}
}

func selector(t *testing.T, s string) labels.Selector {
	t.Helper()
	sel, err := labels.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel
}

// TestBrokenPoliciesClose: what cannot be understood allows nothing, and never means "any".
func TestBrokenPoliciesClose(t *testing.T) {
	nobody, noPort := model.PolicyRule{AnyPort: true}, model.PolicyRule{AnyPeer: true}
	tests := []struct {
		name, in, want string
		rule           *model.PolicyRule // what is left of the only ingress rule
	}{
		{"type", "{policyTypes: [ingress]}", `spec.policyTypes[0]: is "ingress", expected Ingress or Egress`, nil},
		{"selector", "{podSelector: {matchExpressions: [{key: a, operator: Is}]}}",
			`spec.podSelector: cannot be used ("Is" is not a valid label selector operator), expected matchLabels, or matchExpressions with In, NotIn, Exists or DoesNotExist`, nil},
		{"empty peer", "{ingress: [{from: [{}]}]}", `spec.ingress[0].from[0]: is empty, expected a podSelector, a namespaceSelector or an ipBlock`, &nobody},
		{"both", "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", `spec.ingress[0].from[0]: has an ipBlock and a selector, expected either, or two peers`, &nobody},
		{"peer's selector", "{ingress: [{from: [{podSelector: {}, namespaceSelector: {matchLabels: {'-': b}}}]}]}", "", &nobody},
		{"block", "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}", `spec.ingress[0].from[0].ipBlock.cidr: is "10.0.0.0", expected a CIDR such as 10.0.0.0/8 or fd00::/64`, &nobody},
		{"except", "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0]}}]}]}",
			`spec.ingress[0].from[0].ipBlock.except[0]: is "10.1.0.0", expected a CIDR such as 10.0.0.0/8 or fd00::/64`, &nobody},
		{"except elsewhere", "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
			`spec.ingress[0].from[0].ipBlock.except[0]: is 11.0.0.0/16, expected a part of 10.0.0.0/8`, &nobody},
		{"port", "{ingress: [{ports: [{port: 0}]}]}", `spec.ingress[0].ports[0].port: is 0, expected a port number from 1 to 65535`, &noPort},
		{"protocol", "{ingress: [{ports: [{protocol: ICMP}]}]}", `spec.ingress[0].ports[0].protocol: is "ICMP", expected TCP, UDP or SCTP`, &noPort},
		{"end", "{ingress: [{ports: [{port: 80, endPort: 79}]}]}", `spec.ingress[0].ports[0].endPort: is 79, expected port, which is 80, or more`, &noPort},
		{"end alone", "{ingress: [{ports: [{endPort: 79}]}]}", `spec.ingress[0].ports[0].endPort: is given without port, expected both, or none`, &noPort},
		{"end with name", "{ingress: [{ports: [{port: web, endPort: 79}]}]}", `spec.ingress[0].ports[0].endPort: is given with a port's name, expected a number as port`, &noPort},
		{"no name", "{ingress: [{ports: [{port: ''}]}]}", `spec.ingress[0].ports[0].port: is an empty name, expected a port's number or name`, &noPort},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Convert(object(t, polHead+"spec: "+tt.in), model.Origin{})
			if err == nil || tt.want != "" && err.Error() != tt.want {
				t.Errorf("error\n%v\nwant\n%s", err, tt.want)
			}
			p, _ := got.(*model.NetworkPolicy)
			if p == nil || !p.Ingress || p.PodSelector == nil || !p.PodSelector.Matches(labels.Set{"any": "pod"}) {
				t.Fatalf("what is left does not isolate all pods: %+v", got)
			}
			if len(p.Faults) != len(err.(Errors)) {
				t.Errorf("faults %q", p.Faults)
			}
			if tt.rule != nil && !reflect.DeepEqual(p.IngressRules, []model.PolicyRule{*tt.rule}) {
				t.Errorf("rules %+v, want %+v", p.IngressRules, *tt.rule)
			}
		})
	}
	if got, err := Convert(object(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x}"), model.Origin{}); got != nil || err == nil {
		t.Errorf("a policy without a name gave %v, %v", got, err)
	}
}

// TestAuditAnnotation: a word that is neither true nor false is told, and enforces.
func TestAuditAnnotation(t *testing.T) {
	for text, want := range map[string]string{"": "", "{braid.network/policy-audit: 'true'}": "true", "{braid.network/policy-audit: 'false'}": "",
		"{braid.network/policy-audit: 'yes'}": `metadata.annotations[braid.network/policy-audit]: is "yes", expected true or false`} {
		got, err := Convert(object(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, annotations: "+cmp.Or(text, "{}")+"}"), model.Origin{})
		ns, _ := got.(*model.Namespace)
		if ns == nil || ns.Audit != (want == "true") || (err != nil) != strings.HasPrefix(want, "metadata") || err != nil && err.Error() != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}
