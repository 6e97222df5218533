{{/* What each value may be is in values.schema.json; here is what does not fit together. All faults are told at once. */}}
{{- define "shunter-server.checks" -}}
{{- $faults := list -}}
{{- $v := .Values -}}
{{- $sqlite := eq $v.database.type "sqlite" -}}
{{- $shared := and $v.persistence.enabled (has "ReadWriteMany" $v.persistence.accessModes) -}}

{{- if $sqlite -}}
{{- if gt (int $v.replicas) 1 -}}
{{- $faults = append $faults (printf "replicas: %v cannot be with database.type: sqlite, whose file has one server. Use replicas: 1, or database.type: postgres." $v.replicas) -}}
{{- end -}}
{{- if $v.autoscaling.enabled -}}
{{- $faults = append $faults "autoscaling.enabled cannot be with database.type: sqlite, whose file has one server. Use database.type: postgres." -}}
{{- end -}}
{{- range $name := list "existingSecret" "host" "passwordSecret" "sslMode" -}}
{{- if get $v.database $name -}}
{{- $faults = append $faults (printf "database.%s is set, and database.type: sqlite has no use for it. Did you mean database.type: postgres?" $name) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- if and (not $v.database.existingSecret) (not $v.database.host) -}}
{{- $faults = append $faults "database.type: postgres needs database.existingSecret (a Secret with the URL), or database.host and database.passwordSecret." -}}
{{- end -}}
{{- if and $v.database.existingSecret (or $v.database.host $v.database.passwordSecret) -}}
{{- $faults = append $faults "database.existingSecret has the whole URL: database.host and database.passwordSecret contradict it. Set one or the other." -}}
{{- end -}}
{{- if and $v.database.host (not $v.database.passwordSecret) (not $v.database.existingSecret) -}}
{{- $faults = append $faults "database.host needs database.passwordSecret: the Secret with the password of database.user." -}}
{{- end -}}
{{- if and (not $shared) (gt (int $v.replicas) 1) (not $v.autoscaling.enabled) -}}
{{- $faults = append $faults (printf "replicas: %v servers share the logs of runs, which are files: persistence.accessModes must have ReadWriteMany (and the volume be one that several nodes can write)." $v.replicas) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (not $shared) -}}
{{- $faults = append $faults "autoscaling.enabled makes several servers, which share the logs of runs: persistence.accessModes must have ReadWriteMany (and the volume be one that several nodes can write)." -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults (printf "autoscaling.minReplicas: %v is more than autoscaling.maxReplicas: %v." $v.autoscaling.minReplicas $v.autoscaling.maxReplicas) -}}
{{- end -}}
{{- if $v.backup.enabled -}}
{{- $faults = append $faults "backup.enabled is for database.type: sqlite. Copies of Postgres are made by its own tools (pg_dump, WAL archives, snapshots of its provider)." -}}
{{- end -}}
{{- end -}}

{{- if and $v.backup.enabled $sqlite -}}
{{- if not $v.persistence.enabled -}}
{{- $faults = append $faults "backup.enabled needs persistence.enabled: the backup mounts the volume that the server has." -}}
{{- end -}}
{{- if has "ReadWriteOncePod" $v.persistence.accessModes -}}
{{- $faults = append $faults "backup.enabled cannot be with persistence.accessModes: ReadWriteOncePod, as the backup is a pod of its own. Use ReadWriteOnce." -}}
{{- end -}}
{{- end -}}

{{- if and (eq $v.tls.mode "secret") (not $v.tls.secretName) -}}
{{- $faults = append $faults "tls.mode: secret needs tls.secretName: the Secret with certificate and key." -}}
{{- end -}}
{{- if and (ne $v.tls.mode "secret") $v.tls.secretName -}}
{{- $faults = append $faults (printf "tls.secretName: %s is set, and tls.mode: %s has no use for it. Use tls.mode: secret." $v.tls.secretName $v.tls.mode) -}}
{{- end -}}

{{- if ne (empty $v.oidc.issuer) (empty $v.oidc.clientId) -}}
{{- $faults = append $faults "oidc.issuer and oidc.clientId go together: set both, or none." -}}
{{- end -}}
{{- if and $v.oidc.roles (not $v.oidc.issuer) -}}
{{- $faults = append $faults "oidc.roles is set without oidc.issuer: nobody signs in who could get them." -}}
{{- end -}}

{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- $faults = append $faults "ingress.enabled needs ingress.hosts: the server answers to names that it knows." -}}
{{- end -}}
{{- if $v.gateway.enabled -}}
{{- if not $v.gateway.parentRefs -}}
{{- $faults = append $faults "gateway.enabled needs gateway.parentRefs: the Gateway that the route is of." -}}
{{- end -}}
{{- if not $v.gateway.hostnames -}}
{{- $faults = append $faults "gateway.enabled needs gateway.hostnames: the server answers to names that it knows." -}}
{{- end -}}
{{- end -}}

{{- if and $v.serviceMonitor.enabled (not $v.serviceMonitor.tokenSecret) -}}
{{- $faults = append $faults "serviceMonitor.enabled needs serviceMonitor.tokenSecret: the Secret with a key of the role viewer (shunter key create prometheus --role viewer)." -}}
{{- end -}}
{{- if and $v.podDisruptionBudget.enabled (eq (kindIs "invalid" $v.podDisruptionBudget.minAvailable) (kindIs "invalid" $v.podDisruptionBudget.maxUnavailable)) -}}
{{- $faults = append $faults "podDisruptionBudget.minAvailable and podDisruptionBudget.maxUnavailable: set one of them, and the other to null." -}}
{{- end -}}
{{- if and $v.ca.secret $v.ca.configMap -}}
{{- $faults = append $faults "ca.secret and ca.configMap contradict each other: set one of them." -}}
{{- end -}}
{{- if and (not $v.auth.existingSecret) (not $v.rbac.create) (not $v.bootstrap.serviceAccountName) -}}
{{- $faults = append $faults "rbac.create: false needs bootstrap.serviceAccountName (an account that may create and get Secrets), or auth.existingSecret." -}}
{{- end -}}
{{- if and $v.auth.existingSecret $v.bootstrap.serviceAccountName -}}
{{- $faults = append $faults "auth.existingSecret contradicts bootstrap.serviceAccountName: with a Secret of yours nothing is bootstrapped. Set one of them." -}}
{{- end -}}
{{- $accounts := list -}}
{{- range $i, $entry := $v.trust -}}
{{- $key := printf "%s %s %s" (ternary $entry.serviceAccount (printf "%s/%s" $.Release.Namespace $entry.serviceAccount) (contains "/" $entry.serviceAccount)) (default "" $entry.issuer) (default "" $entry.apiServer) -}}
{{- if has $key $accounts -}}
{{- $faults = append $faults (printf "trust[%d].serviceAccount: %s is there twice. Put its pools into one entry." $i $entry.serviceAccount) -}}
{{- end -}}
{{- $accounts = append $accounts $key -}}
{{- if and $entry.jwks (not $entry.issuer) -}}
{{- $faults = append $faults (printf "trust[%d].jwks needs trust[%d].issuer: whose keys they are." $i $i) -}}
{{- end -}}
{{- if and $entry.jwks $entry.apiServer -}}
{{- $faults = append $faults (printf "trust[%d].jwks and trust[%d].apiServer contradict each other: keys come from one place." $i $i) -}}
{{- end -}}
{{- if and $entry.tokenFile (not $entry.apiServer) -}}
{{- $faults = append $faults (printf "trust[%d].tokenFile needs trust[%d].apiServer: it is shown to that alone." $i $i) -}}
{{- end -}}
{{- if and $entry.review $entry.issuer (not $entry.apiServer) -}}
{{- $faults = append $faults (printf "trust[%d].review needs trust[%d].apiServer: the server is in no cluster of that issuer that it knows of." $i $i) -}}
{{- end -}}
{{- end -}}

{{- $names := list -}}
{{- range include "shunter-server.environment" . | fromYamlArray -}}
{{- if has .name $names -}}
{{- $faults = append $faults (printf "extraEnv: %s is set twice. What the chart sets comes from other values; settings of the server from settings." .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}

{{- if $faults -}}
{{- fail (printf "\n\n%s\n" (join "\n" $faults)) -}}
{{- end -}}
{{- end -}}
