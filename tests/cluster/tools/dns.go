package main

import (
	"os"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
	"github.com/spf13/cobra"
)

// newDNSCommand is CoreDNS with the few plugins that a cluster's names need; it runs until it is killed.
func newDNSCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "dns COREFILE",
		Args:         cobra.ExactArgs(1),
		SilenceUsage: true,
		RunE: func(_ *cobra.Command, words []string) error {
			corefile, err := os.ReadFile(words[0])
			if err != nil {
				return err
			}
			// In the order in which they see a question.
			dnsserver.Directives = []string{"bind", "ready", "errors", "kubernetes", "template"}
			instance, err := caddy.Start(caddy.CaddyfileInput{
				Filepath: words[0], Contents: corefile, ServerTypeName: "dns",
			})
			if err != nil {
				return err
			}
			instance.Wait()
			return nil
		},
	}
}
