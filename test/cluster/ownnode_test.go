package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// What the component own-node lets an agent write, against a real API server: of the Node that its token is
// bound to, annotations of Braid's and pod CIDRs where there are none, and nothing else.
func TestOwnNodePolicy(t *testing.T) {
	o := apiOnly(t, "v4")
	o.ok(t, "", "apply", "-k", o.overlay(t, "components: [DEPLOY/own-node]\n"))
	o.ok(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1","annotations":{"other":"kept"},"labels":{"a":"b"}}}`, "create", "-f", "-")
	o.ok(t, `{"apiVersion":"v1","kind":"Node","metadata":{"name":"n2"},"spec":{"podCIDR":"10.9.0.0/24","podCIDRs":["10.9.0.0/24"]}}`, "create", "-f", "-")
	// kubectl asks for the object first, which agents do not.
	o.ok(t, "", "create", "clusterrole", "kubectl-reads", "--verb=get", "--resource=nodes")
	o.ok(t, "", "create", "clusterrolebinding", "kubectl-reads", "--clusterrole=kubectl-reads", "--serviceaccount=kube-system:braid-netagent")
	as := func(node, target, patch string) error {
		args := []string{"--as=system:serviceaccount:kube-system:braid-netagent", "--as-group=system:authenticated"}
		if node != "" {
			args = append(args, "--as-user-extra=authentication.kubernetes.io/node-name="+node)
		}
		_, err := o.ctl("", append(args, "patch", "node", target, "--type=merge", "-p", patch)...)
		return err
	}
	const annotate = `{"metadata":{"annotations":{"braid.network/underlay":"192.0.2.1"}}}`
	// The API server learns of a policy some time after it was made.
	if err := await(t.Context(), "the policy to be in force", time.Minute, func() error {
		if err := as("n2", "n1", annotate); err == nil || !strings.Contains(err.Error(), "and no other") {
			return errors.Join(errors.New("an agent of n2 is not kept from n1"), err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, node, target, patch, want string }{
		{"its own annotation", "n1", "n1", annotate, ""},
		{"another's node", "n1", "n2", annotate, "and no other"},
		{"a token of no node", "", "n1", annotate, "and no other"},
		{"somebody's annotation", "n1", "n1", `{"metadata":{"annotations":{"other":"mine"}}}`, "braid.network/ only"},
		{"somebody's annotation taken away", "n1", "n1", `{"metadata":{"annotations":{"other":null}}}`, "braid.network/ only"},
		{"a label", "n1", "n1", `{"metadata":{"labels":{"a":"c"}}}`, "no labels"},
		{"a finalizer", "n1", "n1", `{"metadata":{"finalizers":["example.com/x"]}}`, "no finalizers and owners"},
		{"a taint", "n1", "n1", `{"spec":{"taints":[{"key":"k","effect":"NoExecute"}]}}`, "sets pod CIDRs only"},
		{"unschedulable", "n1", "n1", `{"spec":{"unschedulable":true}}`, "sets pod CIDRs only"},
		{"pod CIDRs and a taint", "n1", "n1", `{"spec":{"podCIDR":"10.9.1.0/24","podCIDRs":["10.9.1.0/24"],"taints":[{"key":"k","effect":"NoExecute"}]}}`, "sets pod CIDRs only"},
		{"pod CIDRs", "n1", "n1", `{"metadata":{"annotations":{"braid.network/pod-cidr-claim":null}},"spec":{"podCIDR":"10.9.1.0/24","podCIDRs":["10.9.1.0/24"]}}`, ""},
		{"its annotation taken away", "n1", "n1", `{"metadata":{"annotations":{"braid.network/underlay":null}}}`, ""},
	} {
		err := as(tc.node, tc.target, tc.patch)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}
