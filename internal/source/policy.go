package source

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/braidnet/braid/internal/model"
)

const wantSelector = "matchLabels, or matchExpressions with In, NotIn, Exists or DoesNotExist"

// policy reads a policy. What is wrong with it is reported, and closes: a rule allows only what can be
// understood, and a selector that cannot be understood selects all pods of the namespace, since a
// policy that were left out instead would leave its pods open.
func (c *converter) policy(o *networkingv1.NetworkPolicy, origin model.Origin) *model.NetworkPolicy {
	p := &model.NetworkPolicy{Origin: origin, UID: string(o.UID)}
	sel, ok := c.selector("spec.podSelector", &o.Spec.PodSelector)
	if !ok {
		sel = labels.Everything()
	}
	p.PodSelector = sel
	for i, t := range o.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.Ingress = true
		case networkingv1.PolicyTypeEgress:
			p.Egress = true
		default:
			c.fail(fmt.Sprintf("spec.policyTypes[%d]", i), fmt.Sprintf("is %q", t), "Ingress or Egress")
			p.Ingress, p.Egress = true, true
		}
	}
	if len(o.Spec.PolicyTypes) == 0 {
		// The API server's default, which manifests rely on: egress only when there are egress rules.
		p.Ingress, p.Egress = true, len(o.Spec.Egress) > 0
	}
	for i, r := range o.Spec.Ingress {
		p.IngressRules = append(p.IngressRules, c.policyRule(fmt.Sprintf("spec.ingress[%d]", i), "from", r.From, r.Ports))
	}
	for i, r := range o.Spec.Egress {
		p.EgressRules = append(p.EgressRules, c.policyRule(fmt.Sprintf("spec.egress[%d]", i), "to", r.To, r.Ports))
	}
	for _, e := range c.errs {
		p.Faults = append(p.Faults, e.Error())
	}
	return p
}

// AuditAnnotation of a namespace, with the value "true", keeps policies from denying its pods anything.
const AuditAnnotation = annotationPrefix + "policy-audit"

func (c *converter) audit(o *corev1.Namespace) bool {
	switch text, ok := o.Annotations[AuditAnnotation]; {
	case text == "true":
		return true
	case ok && text != "false":
		c.fail("metadata.annotations["+AuditAnnotation+"]", fmt.Sprintf("is %q", text), "true or false")
	}
	return false
}

func (c *converter) selector(path string, s *metav1.LabelSelector) (labels.Selector, bool) {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		c.fail(path, "cannot be used ("+err.Error()+")", wantSelector)
	}
	return sel, err == nil
}

func (c *converter) policyRule(path, peers string, from []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) model.PolicyRule {
	r := model.PolicyRule{AnyPeer: len(from) == 0, AnyPort: len(ports) == 0}
	for i := range from {
		if p, ok := c.policyPeer(fmt.Sprintf("%s.%s[%d]", path, peers, i), &from[i]); ok {
			r.Peers = append(r.Peers, p)
		}
	}
	for i := range ports {
		if p, ok := c.policyPort(fmt.Sprintf("%s.ports[%d]", path, i), &ports[i]); ok {
			r.Ports = append(r.Ports, p)
		}
	}
	return r
}

func (c *converter) policyPeer(path string, o *networkingv1.NetworkPolicyPeer) (p model.PolicyPeer, ok bool) {
	switch {
	case o.IPBlock == nil && o.PodSelector == nil && o.NamespaceSelector == nil:
		c.fail(path, "is empty", "a podSelector, a namespaceSelector or an ipBlock")
		return p, false
	case o.IPBlock != nil && (o.PodSelector != nil || o.NamespaceSelector != nil):
		c.fail(path, "has an ipBlock and a selector", "either, or two peers")
		return p, false
	case o.IPBlock != nil:
		return c.block(path+".ipBlock", o.IPBlock)
	}
	p.Pods, ok = labels.Everything(), true
	if o.PodSelector != nil {
		p.Pods, ok = c.selector(path+".podSelector", o.PodSelector)
	}
	if o.NamespaceSelector != nil {
		namespaces, fine := c.selector(path+".namespaceSelector", o.NamespaceSelector)
		p.Namespaces, ok = namespaces, ok && fine
	}
	return p, ok
}

// block reads an ipBlock. One whose exceptions cannot all be read is none: it would allow too much.
func (c *converter) block(path string, o *networkingv1.IPBlock) (p model.PolicyPeer, ok bool) {
	p.Block, ok = c.prefix(path+".cidr", o.CIDR)
	for i, text := range o.Except {
		at := fmt.Sprintf("%s.except[%d]", path, i)
		e, fine := c.prefix(at, text)
		if fine && p.Block.IsValid() && (e.Bits() < p.Block.Bits() || !p.Block.Contains(e.Addr())) {
			c.fail(at, "is "+e.String(), "a part of "+p.Block.String())
			fine = false
		}
		ok = ok && fine
		p.Except = append(p.Except, e)
	}
	return p, ok
}

func (c *converter) policyPort(path string, o *networkingv1.NetworkPolicyPort) (p model.PolicyPort, ok bool) {
	before := len(c.errs)
	p.Protocol = c.protocol(path+".protocol", value(o.Protocol, ""))
	switch {
	case o.Port == nil:
		p.To = 65535
		if o.EndPort != nil {
			c.fail(path+".endPort", "is given without port", "both, or none")
		}
	case o.Port.Type == intstr.String:
		if p.Name = o.Port.StrVal; p.Name == "" {
			c.fail(path+".port", "is an empty name", "a port's number or name")
		}
		if o.EndPort != nil {
			c.fail(path+".endPort", "is given with a port's name", "a number as port")
		}
	default:
		p.From = c.port(path+".port", o.Port.IntVal, false)
		p.To = p.From
		if o.EndPort != nil {
			if p.To = c.port(path+".endPort", *o.EndPort, false); p.To < p.From {
				c.fail(path+".endPort", fmt.Sprintf("is %d", *o.EndPort), fmt.Sprintf("port, which is %d, or more", p.From))
			}
		}
	}
	return p, len(c.errs) == before
}
